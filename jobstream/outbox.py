"""What an attempt has said and nobody has written yet: one state (progress) and a bounded line of entries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from numbers import Integral
from typing import Literal, NamedTuple

EntryKind = Literal["log", "chunk"]

LOGS_WAITING = 10_000
"""Log lines that may wait for Redis; beyond, the oldest give way and are counted (memory stays bounded)."""


class ProgressState(NamedTuple):
    """The latest that `JobContext.progress` was told."""

    current: float | int | None = None
    total: float | int | None = None
    message: str | None = None
    items: tuple[str, ...] = ()


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
        self.current: object = None
        """`ProgressState.current`. Write it, then look at `quick`: when that is set, the write will be taken."""
        self.quick = False
        """Progress waits to be taken: until it is, writing `current` is all there is to do."""
        self.total: float | int | None = None
        self._message: str | None = None
        self._items: tuple[str, ...] = ()
        self._moved = False
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
            if current is not None:
                self.current = current
            if total is not None:
                self.total = total
            if message is not None:
                self._message = message
            if items is not None:
                self._items = items
            self._moved = self.quick = True
        if not self._told:
            self._tell()

    def interrupt(self) -> None:
        """Make the next `JobContext.progress` look up: the job is to stop."""
        self.quick = False

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
            self._told = self.quick = False
            moved, self._moved = self._moved, False
            progress = self.state if moved else None
            entries, self._entries = list(self._entries), deque()
            self._logs_waiting = 0
            dropped, self._dropped = self._dropped, 0
        return Batch(progress, entries, dropped)

    @property
    def state(self) -> ProgressState:
        """The progress as it is now."""
        return ProgressState(self._number(), self.total, self._message, self._items)

    def _number(self) -> float | int | None:
        """`current` as a number of Python's own; what is none (a quick write is not looked at) is no progress."""
        value = self.current
        if value is None or type(value) in (int, float):
            return value  # type: ignore[return-value]
        try:
            return plain_number(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None

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


def plain_number(value: float) -> float | int:
    """A plain number of at most 64 bits, whatever the task counts with (numpy, Decimal, bool)."""
    if type(value) is float:
        return value
    if isinstance(value, Integral) and -(1 << 63) <= value < 1 << 63:
        return int(value)
    return float(value)
