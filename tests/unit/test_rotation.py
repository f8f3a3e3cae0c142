"""Rotation: each queue's share, evenly spread."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from jobstream_workers.rotation import Rotation


@pytest.mark.parametrize("slots", [1, 3, 4, 10, 400])
def test_shares_follow_the_weights_however_many_slots_come_at_once(slots: int) -> None:
    rotation = Rotation({"a": 3, "b": 1})
    dealt: Counter[str] = Counter()
    for _ in range(400 // slots):
        turn = rotation.deal(slots, rotation.queues)
        assert turn.total() == slots
        dealt += turn
    assert abs(dealt["a"] - 3 * dealt["b"]) <= 3


def test_a_light_queue_is_never_far_behind_its_share() -> None:
    rotation = Rotation({"heavy": 9, "light": 1})
    turns = [next(iter(rotation.deal(1, rotation.queues))) for _ in range(100)]
    waits = [at for at, queue in enumerate(turns) if queue == "light"]
    assert [after - before for before, after in pairwise(waits)] == [10] * 9


def test_the_turns_of_a_heavy_queue_are_spread() -> None:
    rotation = Rotation({"a": 5, "b": 1, "c": 1})
    assert "".join(next(iter(rotation.deal(1, rotation.queues))) for _ in range(14)) == "aabacaa" * 2


def test_equal_weights_take_turns() -> None:
    rotation = Rotation({"a": 1, "b": 1})
    assert [next(iter(rotation.deal(1, rotation.queues))) for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_queue_alone_gets_everything() -> None:
    rotation = Rotation({"only": 7})
    assert rotation.queues == ("only",)
    assert rotation.deal(5, rotation.queues) == {"only": 5}


def test_no_free_slot_is_nobodys() -> None:
    rotation = Rotation({"a": 3, "b": 1})
    assert rotation.deal(0, rotation.queues).total() == 0


def test_what_an_empty_queue_leaves_is_shared_by_weight_among_the_others() -> None:
    rotation = Rotation({"empty": 5, "b": 2, "c": 1})
    dealt = sum((rotation.deal(1, ("b", "c")) for _ in range(30)), Counter())
    assert dealt == {"b": 20, "c": 10}
