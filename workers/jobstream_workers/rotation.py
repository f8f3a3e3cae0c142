"""Rotation: which queue gets the next free slot, by weight (smooth weighted round robin, as nginx has it)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Rotation:
    """Deals slots to queues so that in any run of turns each has had its share, evenly spread."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._total = sum(weights.values())
        self._credit = dict.fromkeys(weights, 0)

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues."""
        return tuple(self._weights)

    def deal(self, slots: int) -> Counter[str]:
        """How many of the free slots each queue gets, in this turn."""
        if len(self._weights) == 1:
            return Counter({next(iter(self._weights)): slots})
        dealt: Counter[str] = Counter()
        for _ in range(slots):
            for queue, weight in self._weights.items():
                self._credit[queue] += weight
            chosen = max(self._credit, key=lambda queue: self._credit[queue])
            self._credit[chosen] -= self._total
            dealt[chosen] += 1
        return dealt
