"""How far a job has come: current of total, a message, and the items processed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

ITEMS_KEPT = 1_000
"""The latest names kept in `Progress.items`; the record is rewritten with each update and must stay small."""

RATE_MEMORY_SECONDS = 5.0
"""Time constant of the moving average behind `eta_s`."""


class Progress(msgspec.Struct, frozen=True):
    """What the record, the events and `GET /jobs/{id}` say. `current` and `total` are in the task's own unit."""

    current: float | int | None = None
    total: float | int | None = None
    percent: float | None = None
    message: str | None = None
    eta_s: float | None = None
    items: tuple[str, ...] = ()


def percent(current: float | None, total: float | None) -> float | None:
    """0 to 100 with one decimal; None while the total is unknown. Never above 100, however wrong the total was."""
    if current is None or not total or total <= 0:
        return None
    share = 100.0 * current / total
    return round(min(max(share, 0.0), 100.0), 1) if math.isfinite(share) else None


class Eta:
    """Seconds left, from an exponentially weighted moving average of the rate (time constant 5 s)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None
        self._rate: float | None = None

    def update(self, current: float | None, total: float | None) -> float | None:
        """Take one reading; give the seconds left, or None while nothing can be said."""
        if current is None:
            return None
        now = self._clock()
        if self._last is None or current < self._last[1]:  # the first reading, or progress that began anew
            self._last, self._rate = (now, current), None
            return None
        elapsed = now - self._last[0]
        if elapsed > 0 and current > self._last[1]:
            rate = (current - self._last[1]) / elapsed
            weight = 1 - math.exp(-elapsed / RATE_MEMORY_SECONDS)
            self._rate = rate if self._rate is None else self._rate + weight * (rate - self._rate)
            self._last = (now, current)
        if not self._rate or not total or total < current:
            return None
        return round((total - current) / self._rate, 1)
