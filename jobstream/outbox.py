"""What an attempt has said and nobody has written yet: one state (progress) and a bounded line of entries."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Literal, NamedTuple

from jobstream import gauge
from jobstream.errors import OutboxFull
from jobstream.gauge import Gauge, ProgressState

EntryKind = Literal["log", "chunk"]

LOGS_WAITING = 10_000
"""Log lines that may wait for Redis; beyond, the oldest give way and are counted (memory stays bounded)."""

LOG_BYTES = 4 << 20
"""The same, by their size."""

CHUNK_BYTES = 1 << 20
"""Chunks that may wait: who says more is held back until they are written."""

REFUSED_BYTES = 16 << 20
"""The same where nobody can be held back: a coroutine that does not await is refused beyond this."""

ENTRY_BYTES = 150
"""What an entry takes besides its data, roughly."""


class Entry(NamedTuple):
    """One log line or one chunk of partial output, as JSON."""

    kind: EntryKind
    data: bytes


class Batch(NamedTuple):
    """What `Outbox.take` hands to the writer: all that was said since the last one."""

    progress: ProgressState | None
    entries: list[Entry]
    logs_dropped: int


class Room:
    """What `JobContext.chunk` gives: awaiting it, a coroutine waits until there is room for more."""

    __slots__ = ("_outbox",)

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __await__(self) -> Generator[object, None, None]:
        return self._outbox.room().__await__()


class Outbox:
    """Filled by running code in any thread, emptied by one writer.

    `notify` is called, in the thread that speaks, when something waits after nothing did: once per batch, however
    many calls fill it; and when somebody waits for room. Progress is state (the latest wins); log lines and chunks keep
    their order. Nothing but a chunk that finds no room blocks, and that never in the thread `never_block` (an event
    loop's, by its `threading.get_ident`).
    """

    def __init__(self, notify: Callable[[], None], *, never_block: int | None = None) -> None:
        self._notify = notify
        self._never_block = never_block
        self._lock = threading.Lock()
        self._emptied: threading.Condition | None = None  # made when somebody waits: few jobs ever do
        self._waiters: list[asyncio.Future[None]] = []
        self.gauge = Gauge()
        """The progress. Running code has one of its own, its `JobContext`, and puts it here."""
        self._entries: deque[Entry] = deque()
        self._logs = 0
        self._log_bytes = 0
        self._chunk_bytes = 0
        self._chunks_first = 0  # so many entries at the front are no log lines
        self._dropped = 0
        self._told = False
        self._stopping = False

    def set_progress(
        self,
        current: float | None = None,
        total: float | None = None,
        message: str | None = None,
        items: tuple[str, ...] | None = None,
    ) -> None:
        """Change the state; what is None stays as it was."""
        with self._lock:
            gauge.move(self.gauge, current, total, message, items)
        if not self._told:
            self._tell()

    def interrupt(self) -> None:
        """Make the next `JobContext.progress` look up, and hold nobody back any more: the job is to stop."""
        gauge.interrupt(self.gauge)
        with self._lock:
            self._stopping = True
            self._make_way()

    def add_log(self, data: bytes) -> None:
        """Append a log line. The oldest give way when there are too many."""
        with self._lock:
            self._append(Entry("log", data))
        if not self._told:
            self._tell()

    def add_chunk(self, data: bytes) -> bool:
        """Append a chunk, as soon as there is room. False: there is none, and the job is to stop.

        Where waiting is not possible it is appended all the same. Raises OutboxFull when there is far too much.
        """
        if self.full:
            self._notify()  # the writer is to hurry
        with self._lock:
            if self.full and not self._stopping:
                if threading.get_ident() != self._never_block:
                    if self._emptied is None:
                        self._emptied = threading.Condition(self._lock)
                    self._emptied.wait_for(lambda: self._stopping or not self.full)
                elif self._chunk_bytes >= REFUSED_BYTES:
                    raise OutboxFull(
                        f"{self._chunk_bytes >> 20} MB of chunks wait to be written: `await job.chunk(…)` waits for it"
                    )
            if self.full and self._stopping:
                return False
            self._append(Entry("chunk", data))
        if not self._told:
            self._tell()
        return True

    async def room(self) -> None:
        """Return when a chunk would find room, or the job is to stop."""
        while True:
            with self._lock:
                if self._stopping or not self.full:
                    return
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
            self._notify()
            await waiter

    def put(self, batch: Batch) -> None:
        """Say again what another outbox gave: the way from a child process to the worker. Never blocks: see `room`."""
        if batch.progress is not None:
            self.set_progress(*batch.progress)
        with self._lock:
            self._dropped += batch.logs_dropped
            for entry in batch.entries:
                if entry.kind == "log" or not (self._stopping and self.full):
                    self._append(entry)
        if batch.entries and not self._told:
            self._tell()

    @property
    def full(self) -> bool:
        """True when so many chunks wait that more have to wait for room."""
        return self._chunk_bytes >= CHUNK_BYTES

    @property
    def waiting(self) -> bool:
        """True when there is something to take."""
        return self._told

    def take(self) -> Batch:
        """All that waits; after it the next word notifies again."""
        with self._lock:
            # Cleared first: a word said while we read notifies once too often, never once too few.
            self._told = False
            progress = gauge.take(self.gauge)
            entries, self._entries = list(self._entries), deque()
            self._logs = self._log_bytes = self._chunk_bytes = self._chunks_first = 0
            dropped, self._dropped = self._dropped, 0
            self._make_way()
        return Batch(progress, entries, dropped)

    def _tell(self) -> None:
        self._told = True
        self._notify()

    def _append(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.kind == "chunk":
            self._chunk_bytes += _size(entry)
            return
        self._logs += 1
        self._log_bytes += _size(entry)
        while self._logs > LOGS_WAITING or (self._log_bytes > LOG_BYTES and self._logs > 1):
            while self._entries[self._chunks_first].kind == "chunk":
                self._chunks_first += 1
            self._log_bytes -= _size(self._entries[self._chunks_first])
            del self._entries[self._chunks_first]
            self._logs -= 1
            self._dropped += 1

    def _make_way(self) -> None:
        """With the lock held."""
        if self._emptied is not None:
            self._emptied.notify_all()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            with suppress(RuntimeError):  # its loop has closed
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _size(entry: Entry) -> int:
    return len(entry.data) + ENTRY_BYTES


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
