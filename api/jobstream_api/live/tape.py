"""The tape: the journal's latest entries as frames, once per process, for all who follow many jobs.

Why nothing is lost and nothing comes twice (with `live/many.py`):

1. The journal numbers every event of every job, in the script that makes the event, and publishes it under its number.
   The tape takes an entry only when it continues `place`; behind a gap, after an overflow and at every acknowledgement
   of the subscription it reads the journal from `place` on. What was published meanwhile is skipped by its number.
2. A lost *last* message has no successor: every `look` seconds the journal's number is compared with the tape's. The
   same call keeps the journal alive.
3. Progress has a number, but is not kept. When numbers are missing that the journal does not have, they were progress:
   the present progress of all running jobs is put on the tape, and what is heard later of before that is not.
4. The journal's generation is in every entry and in every id. A new one (nobody wanted it for a while, it was lost, or
   history forked), and a journal that was trimmed before it was read, make every follower begin anew, with snapshots.
5. A follower enters between two turns: what is put on the tape from then on was matched against its filter, too.
6. The tape is bounded. A follower that has not taken what fell off reads it from the journal itself.

All of it runs in one event loop; only the turns of `_run` move `place`, one after the other, and only `_run` closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from redis.asyncio import Redis

from jobstream import journal
from jobstream.cancellation import cancel
from jobstream.events import JobEvent, purged_record
from jobstream.job import JobStatus, Record, from_ms, wire_time
from jobstream.journal import JournalEntry, Place
from jobstream.redis import is_unavailable
from jobstream.store import JobFilter, read_records, unfinished_ids
from jobstream_api.live.frame import Frame
from jobstream_api.live.hub import Hub
from jobstream_api.live.page import job_json

logger = logging.getLogger("jobstream.tape")

TAPE_FRAMES = 4096
"""Frames on the tape."""

TAPE_BYTES = 4 * 1024**2
"""Bytes of data on the tape; each wire format that is asked for needs as much again."""

INBOX = 4096
"""Messages that may wait for their turn; beyond, the journal is read."""

PAGE = 64
"""Entries or records read in one round trip: results are in records, and nobody says how large they are."""

READERS = 8
"""Followers that read Redis at a time: a new journal makes all of them begin anew at once."""

STATE_SECONDS = 0.05
"""Progress goes out no more often than this."""

LATE_SECONDS = 0.5
"""How long a message may be under way before the journal is read instead."""

ENTER_SECONDS = 3.0
"""How long a follower waits for the subscription and the journal."""

RUNNING_MOST = 10_000
"""Jobs whose progress is told again after some was lost."""

SLICE = 64
"""Followers told in one go."""

_PAUSE_SECONDS = 0.1
_PAUSE_MAX_SECONDS = 1.0


class Reader(Protocol):
    """A follower as the tape sees it. Its methods must neither wait nor raise."""

    @property
    def wanted(self) -> JobFilter: ...

    def see(self) -> None:
        """The tape has grown."""

    def begin_anew(self) -> None:
        """The journal is another one, or was trimmed before it was read."""

    def close(self) -> None:
        """The process is shutting down."""


class Strip(NamedTuple):
    """A frame, and the entry that it tells; its number is 0 for progress that is told again."""

    entry: JournalEntry
    frame: Frame


class Tape:
    """Open while somebody follows: `enter` opens it, the last one's `leave` closes it.

    `look`: seconds between two looks for a lost last message.
    """

    def __init__(self, client: Redis, hub: Hub, *, look: float = 15.0) -> None:
        self.client = client
        self.place: Place | None = None
        """Up to where the journal is on the tape, or was before it fell off."""
        self.reads = asyncio.Semaphore(READERS)
        """Held by a follower while it reads Redis."""
        self._hub = hub
        self._look_every = look
        self._look_at = 0.0
        self._due = 0
        self._readers: dict[Reader, None] = {}
        self._strips: list[Strip] = []
        self._bytes = 0
        self._first = 0
        self._inbox: list[JournalEntry] = []
        self._told: dict[str, int] = {}
        """Versions of jobs whose progress was read and told: what is heard of before that would set it back."""
        self._told_until = 0
        self._stale = True
        self._turned = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = 0.0
        self._turning = asyncio.Lock()
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def readers(self) -> int:
        """How many followers there are."""
        return len(self._readers)

    @property
    def prefix(self) -> str:
        """What goes before the links of the jobs it tells of."""
        return self._hub.prefix

    @property
    def draining(self) -> bool:
        """True when the process is shutting down: nobody is admitted any more."""
        return self._hub.draining

    @property
    def end(self) -> int:
        """The position behind the last strip."""
        return self._first + len(self._strips)

    def strips(self, position: int, most: int) -> list[Strip] | None:
        """What is on the tape from a position on; None when some of it fell off."""
        start = position - self._first
        return None if start < 0 else self._strips[start : start + most]

    async def enter(self, reader: Reader) -> Place:
        """From now on, that is behind `end`, what matches the reader's filter is on the tape. Up to where it is now.

        `leave` in any case. Raises TimeoutError when Redis is away. While the process drains, the place means nothing.
        """
        self._readers[reader] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="tape")
        async with asyncio.timeout(ENTER_SECONDS):
            await self._opened.wait()
            async with self._turning:
                return self.place or Place("", 0)

    def leave(self, reader: Reader) -> None:
        """The reader takes no more."""
        self._readers.pop(reader, None)
        if not self._readers:
            self._turned.set()

    async def aclose(self) -> None:
        """Close it for good."""
        if self._task is not None:
            await cancel(self._task)
        if self._timer is not None:
            self._timer.cancel()

    # --- what the hub calls -----------------------------------------------------------------------------------------

    def hear(self, message: bytes) -> None:
        """A message of the journal's channel."""
        if self._stale:
            return
        entry = journal.parse_entry(message)
        self._inbox.append(entry)
        if len(self._inbox) > INBOX:
            self.make_stale()
        elif entry.durable:
            self._turned.set()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._told_at + STATE_SECONDS, self._ring)

    def make_stale(self) -> None:
        """Nothing is known of what was published until now: the journal must be read."""
        self._inbox.clear()
        self._stale = True
        self._turned.set()

    def close(self) -> None:
        """The process is shutting down."""
        self._opened.set()  # whoever waits for it need not
        for reader in tuple(self._readers):
            reader.close()

    def _ring(self) -> None:
        self._timer = None
        self._turned.set()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = _PAUSE_SECONDS
        overhears = False
        while self._readers:
            try:
                if not overhears:
                    await self._hub.overhear(journal.CHANNEL, self)
                    overhears = True
                await self._wait()
                async with self._turning:
                    await self._turn()
                pause = _PAUSE_SECONDS
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("the journal cannot be followed")
                self.make_stale()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MAX_SECONDS)
        # Not by a cancellation from `leave`: it could be late, or swallowed, and meet the next opening.
        self._hub.stop_overhearing(journal.CHANNEL)
        self._opened.clear()
        self._begin(None)
        self.make_stale()
        self._task = None

    async def _wait(self) -> None:
        left = self._look_at - asyncio.get_running_loop().time()
        if left > 0 and not self._turned.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._turned.wait()

    async def _turn(self) -> None:
        clock = asyncio.get_running_loop().time
        self._turned.clear()
        if self.place is None or self._stale:
            self._stale = False  # what is published from here on is kept, and compared with what is read now
            await self._read_journal()
            self._opened.set()
            self._look_at, self._due = clock() + self._look_every, 0
            return
        await self._take_inbox(self.place)
        if clock() >= self._look_at:
            await self._look(self.place)

    async def _take_inbox(self, place: Place) -> None:
        entries, self._inbox = self._inbox, []
        generation, seq = place
        fresh = []
        for entry in entries:
            if entry.generation != generation or entry.seq > seq + 1:
                self.make_stale()
                break
            if entry.seq == seq + 1:
                seq += 1
                fresh.append(entry)
        for start in range(0, len(fresh), PAGE):
            page = fresh[start : start + PAGE]
            self._append(await self._strips_of(page))
            self.place = Place(generation, page[-1].seq)
            await self._tell()
        if self._told and seq >= self._told_until:
            self._told = {}

    async def _read_journal(self) -> None:
        known = self.place
        place = await journal.want(self.client, history=await self._hub.epoch(), seen=known)
        if known is None or known.generation != place.generation:
            await self._begin_anew(place)
            return
        missed = 0
        while True:
            page = await journal.replay(self.client, known, limit=PAGE)
            if page is None or not page.complete:
                place = await journal.want(self.client, history=await self._hub.epoch(), seen=known)
                await self._begin_anew(place)
                return
            missed += page.seq - known.seq - len(page.entries)
            self._append(await self._strips_of(page.entries))
            self.place = known = Place(known.generation, page.seq)
            await self._tell()
            if not page.more:
                break
        if missed:
            await self._tell_progress()

    async def _begin_anew(self, place: Place) -> None:
        self._begin(place)
        for reader in tuple(self._readers):
            reader.begin_anew()
        await self._tell()

    def _begin(self, place: Place | None) -> None:
        self._first, self._strips, self._bytes = self.end, [], 0
        self._told = {}
        self.place = place

    async def _tell_progress(self) -> None:
        """Progress was lost: tell that of every running job."""
        generation = self.place.generation if self.place else ""
        ids, _ = await unfinished_ids(self.client, JobFilter(status=JobStatus.RUNNING), most=RUNNING_MOST)
        for start in range(0, len(ids), PAGE):
            records = await read_records(self.client, ids[start : start + PAGE])
            entries = [entry for record in records if (entry := progress_entry(record, generation)) is not None]
            self._append(await self._strips_of(entries))
            self._told |= {entry.job_id: entry.event.version for entry in entries}
            await self._tell()
        reached = await journal.read_place(self.client)
        self._told_until = reached.seq if reached is not None else 0

    async def _look(self, place: Place) -> None:
        """Has the journal more than was heard, and still has it a moment later? Then a message was lost."""
        now = asyncio.get_running_loop().time()
        if place.seq < self._due:
            self.make_stale()
            return
        reached = await journal.want(self.client, history=await self._hub.epoch(), seen=place)
        if reached.generation != place.generation:
            self.make_stale()
            return
        self._due = reached.seq
        self._look_at = now + (LATE_SECONDS if reached.seq > place.seq else self._look_every)

    # --- the tape itself --------------------------------------------------------------------------------------------

    async def _strips_of(self, entries: Sequence[JournalEntry]) -> list[Strip]:
        """What anybody wants of these; of a job's progress the latest is enough."""
        filters = {reader.wanted for reader in self._readers}
        latest = {entry.job_id: at for at, entry in enumerate(entries) if not entry.durable}
        wanted = [
            entry
            for at, entry in enumerate(entries)
            if entry.durable or (latest[entry.job_id] == at and entry.event.version > self._told.get(entry.job_id, 0))
            if any(map(entry.matches, filters))
        ]
        frames = await entry_frames(self.client, wanted, prefix=self.prefix)
        return list(map(Strip, wanted, frames))

    def _append(self, strips: list[Strip]) -> None:
        self._strips += strips
        self._bytes += sum(len(strip.frame.data) for strip in strips)
        excess = 0
        while len(self._strips) - excess > TAPE_FRAMES or self._bytes > TAPE_BYTES:
            self._bytes -= len(self._strips[excess].frame.data)
            excess += 1
        if excess:
            del self._strips[:excess]
            self._first += excess

    async def _tell(self) -> None:
        self._told_at = asyncio.get_running_loop().time()
        for number, reader in enumerate(tuple(self._readers), start=1):
            reader.see()
            if number % SLICE == 0:
                await asyncio.sleep(0)


async def entry_frames(client: Redis, entries: Sequence[JournalEntry], *, prefix: str = "") -> list[Frame]:
    """The frames of these entries. The record of a job that has ended is read for its `done`."""
    ended = [entry.job_id for entry in entries if entry.event.kind == "done" and not purged_record(entry.event.data)]
    records: dict[str, Record] = {}
    for start in range(0, len(ended), PAGE):
        page = ended[start : start + PAGE]
        records |= zip(page, await read_records(client, page), strict=True)
    return [_entry_frame(entry, records.get(entry.job_id), prefix) for entry in entries]


def _entry_frame(entry: JournalEntry, record: Record | None, prefix: str) -> Frame:
    event = entry.event
    kind, data = event.kind, event.data
    if kind == "done":
        record = purged_record(data) or record
        if record is not None and record.get(b"version") == str(event.version).encode():
            data = job_json(record, prefix=prefix)
        else:  # it is gone, or was run again, and its record speaks of that run
            kind, data = "status", b'{"status":"%b"}' % entry.status.encode()
    event_id = str(entry.id) if entry.durable else None
    return Frame(kind, event_id, event.time_ms, about(entry.job_id, entry.task, event.time_ms, data))


def about(job_id: str | None, task: str | None, time_ms: int, data: bytes) -> bytes:
    """What every frame carries when many jobs are followed: of which job it speaks."""
    when = wire_time(from_ms(time_ms)).encode()
    return b'{"job":%b,"task":%b,"time":"%b","data":%b}' % (
        msgspec.json.encode(job_id),
        msgspec.json.encode(task),
        when,
        data,
    )


def progress_entry(record: Record, generation: str) -> JournalEntry | None:
    """The progress that a record has, as an entry without a number."""
    if b"status" not in record or b"progress" not in record:
        return None
    time_ms = int(record.get(b"started_at", record[b"created_at"]))
    return JournalEntry(
        generation,
        0,
        record[b"status"].decode(),
        record[b"id"].decode(),
        record.get(b"task", b"").decode(),
        frozenset(record.get(b"tags", b"").decode().split()),
        record[b"owner"].decode() if b"owner" in record else None,
        JobEvent(int(record[b"version"]), "progress", time_ms, record[b"progress"]),
    )
