"""A loop that takes a microsecond a turn, with and without saying how far it is: the tasks of `benchmarks.progress`."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from jobstream import JobContext, task

TURNS = 20_000
"""Turns of one run: a fiftieth of a second, so that a pair is over before the machine changes its mind."""
TURN_NS = 1_000

Inner = range
Run = Callable[[JobContext, Inner], None]


def work(inner: Inner) -> None:
    """What a turn does. One function for all loops: where in memory its code lies makes a tenth of its time."""
    for _ in inner:
        pass


def silent(job: JobContext, inner: Inner) -> None:
    """The loop, and nothing said."""
    for _ in range(TURNS):
        work(inner)


def tracked(job: JobContext, inner: Inner) -> None:
    """`job.track`."""
    for _ in job.track(range(TURNS)):
        work(inner)


def counted(job: JobContext, inner: Inner) -> None:
    """`job.progress` with how far."""
    for number in range(TURNS):
        work(inner)
        job.progress(number)


def measured(job: JobContext, inner: Inner) -> None:
    """`job.progress` with how far of how much."""
    total = TURNS  # a local name, as code has it that counts something
    for number in range(total):
        work(inner)
        job.progress(number, total)


WAYS: dict[str, Run] = {"track": tracked, "progress(n)": counted, "progress(n, total)": measured}

Pairs = dict[str, list[tuple[float, float]]]
"""Way → of each pair of runs, ns of CPU time a turn, without and with a word."""


def pairs(job: JobContext, count: int) -> Pairs:
    """Measure: each run that speaks is between two that do not, and is compared with their mean."""
    inner = range(50)
    for _ in range(8):
        inner = _a_microsecond(job, inner)
    found: Pairs = {way: [] for way in WAYS}
    for _ in range(count):
        inner = _a_microsecond(job, inner)  # again: the machine is faster or slower than it was
        before = _ns_per_turn(silent, job, inner)
        for way, speaking in WAYS.items():
            with_word = _ns_per_turn(speaking, job, inner)
            after = _ns_per_turn(silent, job, inner)
            found[way].append(((before + after) / 2, with_word))
            before = after
    return found


def _a_microsecond(job: JobContext, inner: Inner) -> Inner:
    """An inner loop so long that a turn takes TURN_NS."""
    took = median(_ns_per_turn(silent, job, inner) for _ in range(3))
    return range(max(1, round(len(inner) * TURN_NS / took)))


def _ns_per_turn(run: Run, job: JobContext, inner: Inner) -> float:
    began = time.thread_time_ns()  # CPU time: what others on this machine do is not the loop's affair
    run(job, inner)
    return (time.thread_time_ns() - began) / TURNS


@task(name="in-thread", executor="thread", timeout=600)
def in_thread(job: JobContext, count: int) -> Pairs:
    """In a thread of the worker, which also writes what is said."""
    return pairs(job, count)


@task(name="in-process", executor="process", timeout=600)
def in_process(job: JobContext, count: int) -> Pairs:
    """In a child process."""
    return pairs(job, count)
