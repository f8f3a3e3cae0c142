"""Rotation: which queue gets the next free slot, by weight (smooth weighted round robin, as nginx has it)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping


class Rotation:
    """Deals slots to queues so that in any run of turns each has had its share, evenly spread."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._credit = dict.fromkeys(weights, 0)

    @property
    def queues(self) -> tuple[str, ...]:
        """All queues."""
        return tuple(self._weights)

    def deal(self, slots: int, among: Collection[str]) -> Counter[str]:
        """How many of the free slots each of these queues gets, in this turn."""
        if len(among) == 1:
            return Counter(dict.fromkeys(among, slots))
        total = sum(self._weights[queue] for queue in among)
        dealt: Counter[str] = Counter()
        for _ in range(slots):
            for queue in among:
                self._credit[queue] += self._weights[queue]
            chosen = max(among, key=self._credit.__getitem__)
            self._credit[chosen] -= total
            dealt[chosen] += 1
        return dealt
