"""How far running code has come: moved by the code as often as it likes, read by the writer when it has time.

A tight loop may move it a million times a second. So it is one object with slots, and `JobContext`, whose method the
loop calls, is one: going to another object for the state would double the price (benchmarks.progress measures it).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from numbers import Integral
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class ProgressState(NamedTuple):
    """The latest that `JobContext.progress` was told."""

    current: float | int | None = None
    total: float | int | None = None
    message: str | None = None
    items: tuple[str, ...] = ()


class Gauge:
    """A state with one quick way to move it.

    While `_quick` is set, a state waits to be taken, and writing the numbers is all there is to do. The order makes
    that safe without a lock: the code writes, then looks at `_quick`; the reader clears `_quick`, then reads. Whoever
    still finds it set has written in time.
    """

    __slots__ = ("_current", "_items", "_message", "_moved", "_quick", "_total")

    def __init__(self) -> None:
        self._quick = False
        self._moved = False
        self._current: object = None
        self._total: object = None
        self._message: str | None = None
        self._items: tuple[str, ...] = ()

    # No keyword-only parameters: CPython's interpreter specialises the call only without them. Each parameter costs.
    def progress(self, current: float | None = None, total: float | None = None, message: str | None = None) -> None:
        """Say how far the work has come.

        What is left out (None) stays as it was. Raises `JobCancelled` when the job was told to stop.
        """
        if current is not None:
            self._current = current
        if total is not None:
            self._total = total
        if message is None and self._quick:
            return
        self._say(current, total, message)

    def _say(self, current: float | None, total: float | None, message: str | None) -> None:
        """All that `progress` does not do at once."""
        raise NotImplementedError


class Tracked(Generic[T]):
    """An iterable whose steps are the job's progress."""

    def __init__(self, job: Gauge, items: Iterable[T], total: float | None, message: str | None) -> None:
        self._job, self._items, self._total, self._message = job, items, total, message

    def __iter__(self) -> Iterator[T]:
        job = self._job
        job.progress(0, self._total, self._message)
        for done, item in enumerate(self._items, start=1):
            yield item
            job._current = done
            if not job._quick:
                job.progress(done)


class AsyncTracked(Generic[T]):
    """An async iterable whose steps are the job's progress."""

    def __init__(self, job: Gauge, items: AsyncIterable[T], total: float | None, message: str | None) -> None:
        self._job, self._items, self._total, self._message = job, items, total, message

    async def __aiter__(self) -> AsyncIterator[T]:
        job = self._job
        job.progress(0, self._total, self._message)
        done = 0
        async for item in self._items:
            yield item
            done += 1
            job.progress(done)


# What the outbox does with a gauge: functions, because the methods of a JobContext are for those who write tasks.


def move(
    gauge: Gauge,
    current: float | None = None,
    total: float | None = None,
    message: str | None = None,
    items: tuple[str, ...] | None = None,
) -> None:
    """Change the state; what is None stays as it was. Not for two threads at a time."""
    if current is not None:
        gauge._current = current
    if total is not None:
        gauge._total = total
    if message is not None:
        gauge._message = message
    if items is not None:
        gauge._items = items
    gauge._moved = gauge._quick = True


def take(gauge: Gauge) -> ProgressState | None:
    """The state, if it has moved since it was last taken. Not for two threads at a time, nor beside `move`."""
    gauge._quick = False  # first: see Gauge
    moved, gauge._moved = gauge._moved, False
    return state_of(gauge) if moved else None


def interrupt(gauge: Gauge) -> None:
    """Make the next `progress` look up."""
    gauge._quick = False


def state_of(gauge: Gauge) -> ProgressState:
    """The state as it is now."""
    return ProgressState(_number(gauge._current), _number(gauge._total), gauge._message, gauge._items)


def _number(value: object) -> float | int | None:
    """A number of Python's own; what is none (a quick write is not looked at) is no progress."""
    if value is None or type(value) in (int, float):
        return value  # type: ignore[return-value]
    try:
        return plain_number(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def plain_number(value: float) -> float | int:
    """A plain number of at most 64 bits, whatever the task counts with (numpy, Decimal, bool)."""
    if type(value) is float:
        return value
    if isinstance(value, Integral) and -(1 << 63) <= value < 1 << 63:
        return int(value)
    return float(value)
