"""Follow one job: a snapshot or a resumption, the log, then every change, until `done`. Knows no wire format."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from jobstream.events import EventId
from jobstream.redis import is_unavailable
from jobstream_api.live.frame import Frame
from jobstream_api.live.hub import Hub
from jobstream_api.live.page import Page

WAITING_FRAMES = 256
"""Frames that may wait for one watcher."""

WAITING_BYTES = 256 * 1024
"""Bytes that may wait for one watcher: one that falls further behind reads the log when it can take more."""

JOIN_SECONDS = 2.0
"""How long a watcher of many jobs that joins waits for what it reads, besides its subscription."""

AWAY_SECONDS = 1.0
"""How long a follower waits before it reads again when Redis was away."""

RETRY_MS = 2000
SPREAD_MS = 2000
"""Watchers of a process that ends come back over this time, not all at once."""


LAST = ("done", "retry")
"""Events behind which nothing comes."""


def goodbye() -> Frame:
    """The last frame of a stream that goes on elsewhere: when to come back (ms)."""
    return Frame("retry", None, 0, str(RETRY_MS // 2 + random.randrange(SPREAD_MS)).encode())


def _nothing() -> None:
    """Nobody takes yet."""


class Follower:
    """Follows one job for one watcher: `join`, then `take` whenever `ready` was called, at last `leave`.

    The hub fills it without ever waiting (`hear`); whoever writes to the watcher empties it. What waits continues what
    was taken, without a gap, up to `version`. A follower is stale when the log knows more than that: behind a gap, when
    it was full, when the hub says so. A stale one hears nothing. It reads the log when it has been emptied, so that a
    watcher that takes nothing costs no reads; what it hears during that read is kept until the page is there.
    """

    __slots__ = (
        "_after",
        "_bytes",
        "_claimed",
        "_early",
        "_fresh",
        "_hub",
        "_joined",
        "_reading",
        "_stale",
        "_waiting",
        "error",
        "job_id",
        "over",
        "ready",
        "version",
    )

    def __init__(self, hub: Hub, job_id: str, *, after: EventId | None = None) -> None:
        self.job_id = job_id
        self.version = 0
        """That of the last frame that waits, or was taken."""
        self.ready: Callable[[], None] = _nothing
        """Called when there may be something to take; it must not wait."""
        self.over = False
        """Nothing comes behind what was taken."""
        self.error: Exception | None = None
        """Why it is over, if that is not `done` or `retry`."""
        self._hub = hub
        self._after = after
        self._waiting: list[Frame] = []
        self._bytes = 0
        self._early: list[Frame] | None = None
        self._joined = False
        self._stale = False
        self._reading = False
        self._fresh = True
        """The watcher is to be sent a snapshot."""
        self._claimed = False
        """`version` is what the watcher says, not what Redis has said."""

    async def join(self, *, admitted: bool = True) -> bool:
        """Subscribe and read; False when the watcher has seen `done` already. Frames wait when this returns.

        A watcher that is not `admitted` (the process is full, or draining) is only told to come back. Raises
        JobNotFound, JobGone, and TimeoutError or redis-py's errors when Redis is away; `leave` in any case.
        """
        admitted = admitted and not self._hub.draining
        self._reading = True
        if admitted:
            self._joined = True
            await self._hub.subscribe(self.job_id, self)
        self._stale, self._early = False, None
        epoch = await self._hub.epoch()
        after = self._after
        resumes = after is not None and after.epoch == epoch
        version = after.version if after is not None and resumes else 0
        page = await asyncio.shield(self._hub.read(self.job_id, version))
        if page.record_version < version:  # an id of a history that is lost, or made up
            version, resumes = 0, False
            page = await asyncio.shield(self._hub.read(self.job_id, 0))
        self._reading = False
        if resumes and page.ended and page.record_version == version:
            return False
        if not admitted or self._hub.draining:
            self._waiting = [goodbye()]
        elif page.epoch != self._hub.known_epoch:  # history has forked just now
            self._stale = True
        else:
            self._fresh, self.version = not resumes, version
            self._fill(page)
        return True

    def restart(self, after: EventId) -> None:
        """Begin again behind an event that the watcher names; what waits is forgotten."""
        if self._leaving:
            return
        known = after.epoch == self._hub.known_epoch
        self._begin(after.version if known else 0, fresh=not known)
        self._claimed = True
        self.ready()

    def leave(self) -> None:
        """Nobody follows any more. More than once does no harm."""
        self.over = True
        self._waiting.clear()
        if self._joined:
            self._joined = False
            self._hub.leave(self.job_id, self)

    def take(self) -> Sequence[Frame]:
        """What waits, in order; when that is nothing and the log knows more, it begins to read."""
        if self._waiting:
            taken, self._waiting = self._waiting, []
            self._bytes = 0
            self.over = taken[-1].event in LAST
            return taken
        if self._stale and not self._reading and not self.over:
            self._stale, self._reading, self._early = False, True, None
            self._hub.read_for(self)
        return ()

    # --- what the hub calls -----------------------------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """An event has happened."""
        if self._stale or self.over:
            return
        if self._reading:
            self._keep(frame)
        else:
            self._add(frame)
            self.ready()

    def make_stale(self) -> None:
        """The log may know more than was heard."""
        self._stale = True
        self.ready()

    def begin_anew(self) -> None:
        """History has forked: what the watcher has is of the other branch."""
        if not self._leaving:
            self._begin(0, fresh=True)
            self.ready()

    def close(self) -> None:
        """The process is shutting down: the watcher continues elsewhere."""
        if not self._leaving and not (self._waiting and self._waiting[-1].event == "done"):
            self._waiting.append(goodbye())
            self.ready()

    def read_done(self, page: Page) -> None:
        """What `read_for` has found."""
        self._reading = False
        if self._leaving:
            return
        if page.after != self.version or page.epoch != self._hub.known_epoch:  # it began anew meanwhile
            self._stale = True
        elif page.record_version < self.version:
            if not self._claimed:
                self._hub.suspect_fork()
            self._begin(0, fresh=True)
        else:
            self._fill(page)
        self.ready()

    def read_failed(self, error: Exception) -> None:
        """Why `read_for` has found nothing."""
        if is_unavailable(error):
            self._stale = True
            asyncio.get_running_loop().call_later(AWAY_SECONDS, self._again)
            return
        self._reading = False
        if not self._leaving:
            self.error, self.over = error, True
            self.ready()

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _leaving(self) -> bool:
        return self.over or bool(self._waiting and self._waiting[-1].event == "retry")

    def _again(self) -> None:
        self._reading = False
        self.ready()

    def _begin(self, version: int, *, fresh: bool) -> None:
        self._waiting.clear()
        self._bytes = 0
        self._early = None
        self._stale, self._fresh, self._claimed = True, fresh, False
        self.version = version

    def _fill(self, page: Page) -> None:
        """Let wait what the page has beyond what was taken, then what was heard since it was read."""
        if self._fresh or not page.complete:
            self._waiting.append(page.snapshot)
        elif page.version > self.version and not page.more and page.progress is not None:
            self._waiting.append(page.progress)
        self._waiting += page.events
        self._fresh = self._claimed = False
        self.version = page.version
        self._stale = self._stale or page.more
        early, self._early = self._early, None
        for frame in early or ():
            if not self._stale:
                self._add(frame)

    def _keep(self, frame: Frame) -> None:
        """Heard while the log is read: whether it is in there shows when the page comes."""
        if self._early is None:
            self._early = []
        self._early.append(frame)
        if len(self._early) > WAITING_FRAMES:
            self._early, self._stale = None, True
            self._hub.counts.overrun += 1

    def _add(self, frame: Frame) -> None:
        if frame.version <= self.version:
            return
        waiting = self._waiting
        if waiting and frame.event == "progress":
            self._drop_progress()
        if (
            frame.since > self.version + 1  # a gap
            or (frame.event == "done" and not frame.data.startswith(b"{"))  # the job at its end is in the record
            or (waiting and (len(waiting) >= WAITING_FRAMES or self._bytes + len(frame.data) > WAITING_BYTES))
        ):
            self._stale = True
            self._hub.counts.overrun += bool(waiting)
            return
        waiting.append(frame)
        self._bytes += len(frame.data)
        self.version = frame.version

    def _drop_progress(self) -> None:
        """Of progress the latest is enough. It moves behind what waits: it has no id, so ids stay in order."""
        for at, frame in enumerate(self._waiting):
            if frame.event == "progress":
                self._bytes -= len(frame.data)
                del self._waiting[at]
                self._hub.counts.conflated += 1
                return
