"""primes: the counts are the known ones, and no border between segments hides a prime or a pair."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from jobstream import JobCancelled
from jobstream.errors import InvalidInput
from jobstream_workers.tasks import primes
from jobstream_workers.tasks.primes import Primes
from tests.unit.task_bench import Bench

MODULE = importlib.import_module("jobstream_workers.tasks.primes")


def run(bench: Bench, limit: int) -> Primes:
    result = primes(bench.job, limit)
    assert isinstance(result, Primes)
    return result


def naive(limit: int) -> Primes:
    found = [n for n in range(2, limit + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]
    pairs = sum(n + 2 in found for n in found)
    return Primes(limit=limit, count=len(found), largest=found[-1], twin_pairs=pairs)


@pytest.mark.parametrize(
    ("limit", "count", "largest", "twin_pairs"),
    [(1_000_000, 78_498, 999_983, 8_169), (10_000_000, 664_579, 9_999_991, 58_980)],
)
def test_the_counts_are_the_known_ones(limit: int, count: int, largest: int, twin_pairs: int, tmp_path: Path) -> None:
    expected = Primes(limit=limit, count=count, largest=largest, twin_pairs=twin_pairs)
    assert run(Bench.at(tmp_path), limit) == expected


@pytest.mark.parametrize("segment", [1, 2, 3, 7, 64])
def test_borders_between_segments_change_nothing(segment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "SEGMENT", segment)
    bench = Bench.at(tmp_path)
    for limit in [*range(2, 130), 361, 1_009]:
        assert run(bench, limit) == naive(limit)


def test_progress_logs_and_chunks_tell_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "SEGMENT", 50)
    bench = Bench.at(tmp_path)
    run(bench, 1_000)
    steps = [state.current for state in bench.outbox.states]
    assert steps == [*range(100, 1_001, 100)]
    assert {state.total for state in bench.outbox.states} == {1_000}
    assert [chunk["count"] for chunk in bench.chunks()] == [25, 46, 62, 78, 95, 109, 125, 139, 154, 168]
    assert bench.logs()[-1] == "168 primes up to 1,000"
    assert len(bench.logs()) == 10


def test_a_cancelled_job_stops_at_the_next_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "SEGMENT", 50)
    bench = Bench.at(tmp_path)
    bench.outbox.listener = lambda state: bench.cancelled.set()
    with pytest.raises(JobCancelled):
        run(bench, 1_000)
    assert [state.current for state in bench.outbox.states] == [100]


@pytest.mark.parametrize("limit", [1, 1_000_000_001])
def test_limits_out_of_range_are_refused(limit: int) -> None:
    with pytest.raises(InvalidInput):
        primes.parse_input({"limit": limit})


def test_it_runs_in_a_process_that_can_find_it() -> None:
    assert primes.executor == "process"
    module, _, name = primes.reference.partition(":")
    assert getattr(importlib.import_module(module), name) is primes
