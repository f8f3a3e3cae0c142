"""Follow many jobs: snapshots of those that are not done, then every change of all that match, resumable by one number.

A follower is in one of two ways. It *catches up*, page by page, when it joins, when the tape has run away from it and
when it is to begin anew: with snapshots, or with the journal behind the last number that it knows. Then it takes from
the tape. It reads a page only when its watcher has taken the one before, so that a slow watcher holds little.

Snapshots are read after the number that they stand on: what they have already is known by the job's version, and
skipped, until the number is passed that the journal had when the last of them had been read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from jobstream.events import EventId
from jobstream.job import FINAL, Record
from jobstream.journal import JournalEntry, Place, read_place, replay
from jobstream.redis import is_unavailable
from jobstream.store import JobFilter, is_visible, read_records, unfinished_ids
from jobstream_api.live.follow import AWAY_SECONDS, JOIN_SECONDS, WAITING_FRAMES, goodbye
from jobstream_api.live.frame import Frame
from jobstream_api.live.page import job_json
from jobstream_api.live.tape import PAGE, RUNNING_MOST, Tape, about, entry_frames, progress_entry

SNAPSHOTS_MOST = 1_000
"""Jobs that a fresh stream shows, the newest."""

SCANNED_MOST = 10_000
"""Jobs that are looked at to find these."""

MARK_EVERY = 10_000
"""Events of others after which a watcher that was sent none is sent an id, so that it can resume behind them."""


def _nothing() -> None:
    """Nobody takes yet."""


class ManyFollower:
    """Follows all jobs that match a filter: `join`, then `take` whenever `ready` was called, at last `leave`."""

    __slots__ = (
        "_after",
        "_generation",
        "_joined",
        "_known",
        "_known_until",
        "_marked",
        "_missed",
        "_pages",
        "_position",
        "_reading",
        "_seq",
        "_tape",
        "_told",
        "_unlisted",
        "_waiting",
        "error",
        "over",
        "ready",
        "wanted",
    )

    def __init__(self, tape: Tape, wanted: JobFilter, *, after: EventId | None = None) -> None:
        self.wanted = wanted
        self.ready: Callable[[], None] = _nothing
        """Called when there may be something to take; it must not wait."""
        self.over = False
        """Nothing comes behind what was taken."""
        self.error: Exception | None = None
        """Why it is over, if that is not a farewell."""
        self._tape = tape
        self._after = after
        self._joined = False
        self._waiting: list[Frame] = []
        self._pages: AsyncGenerator[list[Frame], None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._generation = ""
        self._seq = 0
        """Up to which number the watcher has been told what it wants, or will have been by what waits."""
        self._position = 0
        """The next strip of the tape."""
        self._marked = 0
        """The number of the last id that the watcher was sent."""
        self._known: dict[str, int] = {}
        """Versions of jobs that a snapshot has told."""
        self._told: dict[str, int] = {}
        """Versions of jobs whose progress was read and told."""
        self._known_until = 0
        self._missed = 0
        """Numbers that the journal does not have any more: they were progress."""
        self._unlisted = False
        """Snapshots have begun, and `listed` was not sent."""

    async def join(self, *, admitted: bool = True) -> bool:
        """Subscribe and read the first page, which waits when this returns True.

        A watcher that is not `admitted` (the process is full, or draining) is only told to come back. Raises
        TimeoutError or redis-py's errors when Redis is away; `leave` in any case.
        """
        if not admitted or self._tape.draining:
            self._waiting = [goodbye()]
            return True
        self._joined = True
        place = await self._tape.enter(self)
        if self._tape.draining:
            self._waiting = [goodbye()]
            return True
        self._position = self._tape.end
        self._generation, self._seq = place
        async with asyncio.timeout(JOIN_SECONDS):
            self._pages = self._snapshots() if self._after is None else self._behind(self._after)
            async with self._tape.reads:
                await self._read()
        return True

    def leave(self) -> None:
        """Nobody follows any more. More than once does no harm."""
        self.over = True
        self._waiting.clear()
        if self._reading is not None:
            self._reading.cancel()
        if self._joined:
            self._joined = False
            self._tape.leave(self)

    def take(self) -> Sequence[Frame]:
        """What waits, in order; when that is nothing it begins to read, or takes from the tape."""
        if self._waiting:
            taken, self._waiting = self._waiting, []
            self.over = taken[-1].event == "retry"
            return taken
        if self.over or self._reading is not None or not self._joined:
            return ()
        if self._pages is None:
            frames = self._from_tape()
            if frames is not None:
                return frames
            self._pages = self._journal()
        self._reading = asyncio.create_task(self._read_on(), name="follow-read")
        return ()

    # --- what the tape calls ----------------------------------------------------------------------------------------

    def see(self) -> None:
        """The tape has grown."""
        self.ready()

    def begin_anew(self) -> None:
        """The journal is another one, or was trimmed: what the watcher has may be anything."""
        self._pages = self._snapshots()

    def close(self) -> None:
        """The process is shutting down: the watcher continues elsewhere."""
        if not self.over and not (self._waiting and self._waiting[-1].event == "retry"):
            self._waiting.append(goodbye())
            self.ready()

    # --- catching up ------------------------------------------------------------------------------------------------

    async def _read_on(self) -> None:
        try:
            async with self._tape.reads:
                await self._read()
        except Exception as error:
            if is_unavailable(error):
                await asyncio.sleep(AWAY_SECONDS)
            else:
                self.error, self.over = error, True
        finally:
            self._reading = None
        self.ready()

    async def _read(self) -> None:
        """The next page. When it cannot be read, the next time begins where this one began."""
        pages = self._pages
        if pages is None:
            return
        try:
            frames = await anext(pages, None)
        except Exception:
            if self._pages is pages:
                self._pages = self._snapshots() if self._unlisted else self._journal()
            raise
        if self._pages is not pages or self.over:  # it is to begin anew, or nobody follows any more
            return
        if frames is None:
            self._pages = None
        elif not (self._waiting and self._waiting[-1].event == "retry"):
            self._waiting += frames

    async def _snapshots(self) -> AsyncGenerator[list[Frame], None]:
        """Every job that matches and is not done, then `listed`, which has the id to resume behind."""
        tape, client = self._tape, self._tape.client
        assert tape.place is not None
        self._unlisted = True
        self._generation, self._seq = tape.place  # what comes behind it is on the tape from here on
        self._position = tape.end
        seq, known, more = self._seq, dict[str, int](), False
        ids, complete = await unfinished_ids(client, self.wanted, most=SCANNED_MOST)
        for page in _paged(ids):
            frames: list[Frame] = []
            for record in await read_records(client, page):
                if not self._is_listed(record):
                    continue
                if len(known) == SNAPSHOTS_MOST:
                    more = True
                    break
                known[record[b"id"].decode()] = int(record[b"version"])
                frames.append(_snapshot(record, prefix=tape.prefix))
            yield frames
            if more:
                break
        reached = await read_place(client)
        self._known, self._told = known, {}
        self._known_until = reached.seq if reached is not None else seq
        self._missed = 0
        self._unlisted = False
        self._marked = seq
        listed = b'{"jobs":%d,"more":%b}' % (len(known), b"true" if more or not complete else b"false")
        now = time.time_ns() // 1_000_000
        yield [Frame("listed", self._id(seq), now, about(None, None, now, listed))]

    async def _journal(self) -> AsyncGenerator[list[Frame], None]:
        """What the journal has behind the last number; snapshots when it does not have all of it any more."""
        tape, client = self._tape, self._tape.client
        more = True
        while more:
            position = tape.end  # what is on the tape by now is in the page: it is read afterwards
            page = await replay(client, Place(self._generation, self._seq), limit=PAGE)
            if page is None or not page.complete:
                async for frames in self._snapshots():
                    yield frames
                return
            wanted = [entry for entry in page.entries if entry.matches(self.wanted) and self._is_news(entry)]
            frames = await entry_frames(client, wanted, prefix=tape.prefix)
            self._missed += page.seq - self._seq - len(page.entries)
            self._position = position
            self._pass(page.seq)
            self._mark(wanted, frames)
            more = page.more
            yield frames  # also when there are none: a join waits for one page only
        if self._missed:
            async for frames in self._progress():
                yield frames

    async def _progress(self) -> AsyncGenerator[list[Frame], None]:
        """Some of the numbers behind us were progress, which is not kept: tell how far the running jobs are now."""
        client, told = self._tape.client, dict[str, int]()
        ids, _ = await unfinished_ids(client, self.wanted, most=RUNNING_MOST)
        for page in _paged(ids):
            entries = [
                entry
                for record in await read_records(client, page)
                if (entry := progress_entry(record, self._generation)) and entry.matches(self.wanted)
            ]
            told |= {entry.job_id: entry.event.version for entry in entries}
            yield await entry_frames(client, entries)
        reached = await read_place(client)
        if reached is not None:
            self._told, self._known_until = told, max(self._known_until, reached.seq)
        self._missed = 0

    async def _behind(self, after: EventId) -> AsyncGenerator[list[Frame], None]:
        """The journal behind an event that the watcher names, or snapshots when there is no such event in it."""
        self._unlisted = True
        known = await self._is_known(after)
        if known:
            self._seq = self._marked = after.version
            self._unlisted = False
        async for frames in self._journal() if known else self._snapshots():
            yield frames

    async def _is_known(self, after: EventId) -> bool:
        """True for an id of this journal, and not of a number that it has not reached."""
        if after.epoch != self._generation:
            return False
        if after.version <= self._seq:
            return True
        reached = await read_place(self._tape.client)  # another process may be ahead of this one
        return reached is not None and reached.generation == after.epoch and after.version <= reached.seq

    def _is_listed(self, record: Record) -> bool:
        status, wanted = record.get(b"status", b"").decode(), self.wanted
        return (
            (status not in FINAL and status != "")
            and wanted.status in (None, status)
            and wanted.task in (None, record.get(b"task", b"").decode())
            and (wanted.tag is None or wanted.tag in record.get(b"tags", b"").decode().split())
            and is_visible(record.get(b"owner"), wanted.owner)
        )

    # --- taking from the tape ---------------------------------------------------------------------------------------

    def _from_tape(self) -> list[Frame] | None:
        """What matches of what is on the tape; None when some of it fell off."""
        while True:
            strips = self._tape.strips(self._position, WAITING_FRAMES)
            if not strips:
                return None if strips is None else []
            self._position += len(strips)
            latest = {strip.entry.job_id: at for at, strip in enumerate(strips) if not strip.entry.durable}
            wanted = [
                strip
                for at, strip in enumerate(strips)
                if (strip.entry.durable or latest[strip.entry.job_id] == at)
                and (strip.entry.seq > self._seq or not strip.entry.seq)
                and strip.entry.matches(self.wanted)
                and self._is_news(strip.entry)
            ]
            frames = [strip.frame for strip in wanted]
            self._pass(max(strip.entry.seq for strip in strips))
            self._mark([strip.entry for strip in wanted], frames)
            if frames:
                return frames

    def _is_news(self, entry: JournalEntry) -> bool:
        """False for what a snapshot, or progress that was read later, has told already."""
        if entry.seq > self._known_until:
            return True
        version, job_id = entry.event.version, entry.job_id
        return version > self._known.get(job_id, 0) and (entry.durable or version > self._told.get(job_id, 0))

    def _pass(self, seq: int) -> None:
        self._seq = max(self._seq, seq)
        if (self._known or self._told) and self._seq >= self._known_until:
            self._known, self._told = {}, {}

    def _mark(self, entries: Sequence[JournalEntry], frames: list[Frame]) -> None:
        """Put a frame behind these that is an id and nothing else, when the watcher's own has become old."""
        durable = [entry.seq for entry in entries if entry.durable]
        if durable:
            self._marked = durable[-1]
        if self._seq - self._marked >= MARK_EVERY:
            self._marked, now = self._seq, time.time_ns() // 1_000_000
            frames.append(Frame("mark", self._id(self._seq), now, about(None, None, now, b"null")))

    def _id(self, seq: int) -> str:
        return str(EventId(self._generation, seq))


def _snapshot(record: Record, *, prefix: str) -> Frame:
    job_id, task, time_ms = record[b"id"].decode(), record.get(b"task", b"").decode(), int(record[b"created_at"])
    return Frame("snapshot", None, time_ms, about(job_id, task, time_ms, job_json(record, prefix=prefix)))


def _paged(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
