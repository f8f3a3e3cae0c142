"""What an attempt has said and nobody has written yet: one state (progress) and a bounded line of entries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from jobstream import gauge
from jobstream.gauge import Gauge, ProgressState

EntryKind = Literal["log", "chunk"]

LOGS_WAITING = 10_000
"""Log lines that may wait for Redis; beyond, the oldest give way and are counted (memory stays bounded)."""


class Entry(NamedTuple):
    """One log line or one chunk of partial output, as JSON."""

    kind: EntryKind
    data: bytes


class Batch(NamedTuple):
    """What `Outbox.take` hands to the writer: all that was said since the last one."""

    progress: ProgressState | None
    entries: list[Entry]
    logs_dropped: int


class Outbox:
    """Filled by running code in any thread without ever blocking, emptied by one writer.

    `notify` is called, in the thread that speaks, when something waits after nothing did: once per batch, however
    many calls fill it. Progress is state (the latest wins); log lines and chunks keep their order.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self.gauge = Gauge()
        """The progress. Running code has one of its own, its `JobContext`, and puts it here."""
        self._entries: deque[Entry] = deque()
        self._logs_waiting = 0
        self._dropped = 0
        self._told = False

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
        """Make the next `JobContext.progress` look up: the job is to stop."""
        gauge.interrupt(self.gauge)

    def add(self, kind: EntryKind, data: bytes) -> None:
        """Append a log line or a chunk."""
        with self._lock:
            if kind == "log":
                if self._logs_waiting >= LOGS_WAITING:
                    self._drop_oldest_log()
                self._logs_waiting += 1
            self._entries.append(Entry(kind, data))
        if not self._told:
            self._tell()

    def put(self, batch: Batch) -> None:
        """Say again what another outbox gave: the way from a child process to the worker."""
        if batch.progress is not None:
            self.set_progress(*batch.progress)
        with self._lock:
            self._dropped += batch.logs_dropped
        for entry in batch.entries:
            self.add(entry.kind, entry.data)

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
            self._logs_waiting = 0
            dropped, self._dropped = self._dropped, 0
        return Batch(progress, entries, dropped)

    def _tell(self) -> None:
        self._told = True
        self._notify()

    def _drop_oldest_log(self) -> None:
        for index, entry in enumerate(self._entries):
            if entry.kind == "log":
                del self._entries[index]
                break
        self._logs_waiting -= 1
        self._dropped += 1
