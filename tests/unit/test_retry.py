"""RetryPolicy: how long it waits, for which errors it gives another attempt, and what it refuses to be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jobstream.errors import ConfigurationError, TaskCrashed
from jobstream.retry import RetryPolicy


def delays(policy: RetryPolicy, retries: int, *, chance: float = 0.5) -> list[float]:
    """What it waits before each retry; a chance of 0.5 is right in the middle."""
    return [policy.delay(retry, chance=lambda: chance) for retry in range(1, retries + 1)]


def test_without_more_words_there_is_one_attempt() -> None:
    assert RetryPolicy().attempts == 1


def test_each_wait_is_a_multiple_of_the_one_before_up_to_a_limit() -> None:
    assert delays(RetryPolicy(backoff=1, factor=2, max_backoff=10), 6) == [1, 2, 4, 8, 10, 10]
    assert delays(RetryPolicy(backoff=0.5, factor=1), 3) == [0.5, 0.5, 0.5]
    assert delays(RetryPolicy(backoff=0), 3) == [0, 0, 0]
    assert delays(RetryPolicy(backoff=500, max_backoff=300), 1) == [300]


def test_the_jitter_is_a_share_to_both_sides() -> None:
    policy = RetryPolicy(backoff=10, jitter=0.2)
    assert delays(policy, 2, chance=0) == pytest.approx([8, 16])
    assert delays(policy, 2, chance=1) == pytest.approx([12, 24])
    assert delays(RetryPolicy(backoff=10, jitter=0), 1, chance=1) == [10]
    assert delays(RetryPolicy(backoff=10, jitter=1), 1, chance=0) == [0]


def test_chance_spreads_the_waits_of_jobs_that_failed_together() -> None:
    policy = RetryPolicy(backoff=10, jitter=0.1)
    waits = [policy.delay(1) for _ in range(200)]
    assert all(9 <= wait <= 11 for wait in waits)
    assert max(waits) - min(waits) > 0.5


@pytest.mark.parametrize("factor", [2, 1e300])
def test_no_number_of_retries_is_too_many(factor: float) -> None:
    policy = RetryPolicy(attempts=10**9, factor=factor, max_backoff=60)
    assert delays(policy, 2)[0] == 1
    assert policy.delay(10**9, chance=lambda: 0.5) == 60


def test_every_exception_is_tried_again_unless_the_policy_says_otherwise() -> None:
    policy = RetryPolicy()
    assert policy.admits(ValueError())
    assert policy.admits(TimeoutError())
    assert policy.admits(TaskCrashed())
    assert not policy.admits(KeyboardInterrupt())


def test_only_the_errors_named_are_tried_again_and_those_given_up_on_are_not() -> None:
    policy = RetryPolicy(retry_on=(OSError, KeyError), give_up_on=(PermissionError,))
    assert policy.admits(ConnectionResetError())
    assert policy.admits(KeyError())
    assert not policy.admits(PermissionError())
    assert not policy.admits(ValueError())


@pytest.mark.parametrize(
    "values",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"backoff": -1},
        {"backoff": math.nan},
        {"factor": 0.5},
        {"factor": math.nan},
        {"max_backoff": -0.1},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": math.nan},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="RetryPolicy"):
        RetryPolicy(**values)
