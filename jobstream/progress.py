"""How far a job has come: current of total, a message, and the items processed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

ITEMS_KEPT = 1_000
"""The latest names kept in `Progress.items`; the record is rewritten with each update and must stay small."""

MEMORY_SECONDS = 5.0
"""The shortest time constant of the moving average behind `eta_s`."""

SETTLE_SECONDS = 0.5
"""What a job does in its first moment says nothing about its rate."""


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
    """Seconds left, from an exponentially weighted moving average of the rate.

    The average remembers about as long as the job has run: to see as far ahead as the other half of a job, one has to
    look as far back. Work counts as spread evenly over the time since the reading before, so that neither seldom
    readings nor bursts of them weigh more than the time they stand for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = 0.0
        self._last: tuple[float, float] | None = None
        self._work = self._time = 0.0
        """Weighted sums; their quotient is the rate."""

    def update(self, current: float | None, total: float | None) -> float | None:
        """Take one reading; give the seconds left, or None while nothing can be said."""
        if current is None:
            return None
        now = self._clock()
        if self._last is None or current < self._last[1]:  # the first reading, or progress that began anew
            self._begun, self._last, self._work, self._time = now, (now, current), 0.0, 0.0
            return None
        elapsed = now - self._last[0]
        if elapsed > 0 and current > self._last[1]:
            memory = max(now - self._begun, MEMORY_SECONDS)
            kept = math.exp(-elapsed / memory)
            weight = (1 - kept) * memory / elapsed  # the mean over the time that this reading stands for
            self._work = self._work * kept + (current - self._last[1]) * weight
            self._time = self._time * kept + elapsed * weight
            self._last = (now, current)
        if now - self._begun < SETTLE_SECONDS or not self._work or not total or total < current:
            return None
        return round((total - current) * self._time / self._work, 1)
