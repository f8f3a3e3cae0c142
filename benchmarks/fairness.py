"""`python -m benchmarks.fairness`: what one tenant's backlog costs another one, with real workers and a real Redis.

Tenant B submits a job now and then. Each tells how long it waited (by its record: from the submission to the claim, in
Redis's own time), and when its function was called: while nobody else is there, while tenant A keeps as many slots busy
as it may, and while ten thousand jobs of A wait, with headroom and without. The last line is the same without tenants,
first come, first served. Workers are processes of their own. All but the last one are measured in every round, each
round beginning with another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

from redis.asyncio import Redis

from benchmarks import machine
from benchmarks.processes import ROOT, BenchmarkError, Server, server
from benchmarks.report import table
from jobstream import keys
from jobstream.cancellation import cancel
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, Submission
from jobstream.redis import UrlSource

WORKERS, SLOTS, KEPT = 2, 10, 1
SHORTEST, LONGEST = 0.02, 0.06
"""Seconds that a job takes."""
PAUSE = 0.04
"""Seconds between two jobs of B."""
PATIENCE = 120.0


@dataclass(frozen=True)
class Case:
    """What A does meanwhile, and whether the two are tenants."""

    title: str
    busy: bool = False
    backlog: bool = False
    tenants: bool = True
    kept: int = KEPT


ALONE = Case("B alone")
BUSY = Case("A keeps 18 of 20 slots busy, nothing waits", busy=True)
BEHIND = Case("as many of A wait", backlog=True)
WITHOUT = Case("the same without headroom", backlog=True, kept=0)
NO_TENANTS = Case("the same without tenants", backlog=True, tenants=False)


class Times(NamedTuple):
    """Of one round, in seconds."""

    wait_p50: float
    wait_p95: float
    start_p50: float
    start_p95: float
    end_p50: float
    end_p95: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--jobs", type=int, default=150, help="jobs of B in each case (150)")
    parser.add_argument("--backlog", type=int, default=10_000, help="jobs of A that wait (10,000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    options = parser.parse_args(arguments)
    for line in machine.describe():
        print(line)
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    found: dict[str, list[Times]] = {}
    cases = [ALONE, BUSY, BEHIND, WITHOUT]
    try:
        with server("off") as redis_server:
            for number in range(options.rounds):
                at = number % len(cases)
                for case in [*cases[at:], *cases[:at], *([NO_TENANTS] if number == 0 else [])]:
                    redis_server.empty()
                    times = asyncio.run(_measured(redis_server, case, max(2, options.jobs), options.backlog))
                    found.setdefault(case.title, []).append(times)
    except (BenchmarkError, TimeoutError) as error:
        print(error or "the jobs did not end", file=sys.stderr)
        return 1
    print("\n".join(["", *_report(found)]))
    return 0


def _report(found: dict[str, list[Times]]) -> list[str]:
    lines = [["ms", "wait p50", "wait p95", "(least-most)", "to start p50", "p95", "(least-most)", "to end p50", "p95"]]
    for case in (ALONE, BUSY, BEHIND, WITHOUT, NO_TENANTS):
        rounds = found[case.title]
        middle = [f"{1000 * median(values):,.1f}" for values in zip(*rounds, strict=True)]
        waits = _spread([1000 * times.wait_p95 for times in rounds])
        starts = _spread([1000 * times.start_p95 for times in rounds])
        lines.append([case.title, *middle[:2], waits, *middle[2:4], starts, *middle[4:]])
    ratios = ["p95 while so many of A wait, with headroom and without; medians of the ratios within each round"]
    for other in (ALONE, BUSY):
        for case in (BEHIND, WITHOUT):
            both = list(zip(found[case.title], found[other.title], strict=True))
            waits_within = [behind.wait_p95 / max(alone.wait_p95, 0.001) for behind, alone in both]
            starts_within = [behind.start_p95 / alone.start_p95 for behind, alone in both]
            ratios.append(
                f"  {case.title}, beside `{other.title}`: wait {median(waits_within):.2f} x {_spread(waits_within)}, "
                f"to the start {median(starts_within):.2f} x {_spread(starts_within)}"
            )
    return [*table(lines), "", *ratios]


def _spread(values: Sequence[float]) -> str:
    return f"({min(values):,.1f}-{max(values):,.1f})"


async def _measured(redis_server: Server, case: Case, jobs: int, backlog: int) -> Times:
    client = UrlSource(redis_server.url).client()
    queue, rng = Queue(client), random.Random(1)
    try:
        async with _fleet(redis_server.url, client, case), asyncio.timeout(PATIENCE):
            await _ended(queue, *await queue.submit_many([_job("b", case, rng)]))  # B is known from now on
            if case.backlog:
                await queue.submit_many([_job("a", case, rng) for _ in range(backlog)])
            async with _busy(queue, case, rng):
                await asyncio.sleep(1)
                submitted: list[tuple[int, str]] = []
                for _ in range(jobs):
                    at = time.time_ns()
                    submitted += [(at, job_id) for job_id in await queue.submit_many([_job("b", case, rng)])]
                    await asyncio.sleep(rng.uniform(0, 2 * PAUSE))
                return _times([(at, await _ended(queue, job_id)) for at, job_id in submitted])
    finally:
        await client.aclose()


def _job(owner: str, case: Case, rng: random.Random) -> Submission:
    return Submission("works", {"seconds": rng.uniform(SHORTEST, LONGEST)}, owner=owner if case.tenants else None)


@contextlib.asynccontextmanager
async def _fleet(url: str, client: Redis, case: Case) -> AsyncIterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        environment |= {
            "PYTHONPATH": str(ROOT),
            "JOBSTREAM_REDIS_URL": url,
            "JOBSTREAM_TASKS": "benchmarks.fairness_tasks",
            "JOBSTREAM_FILES_DIR": directory,
            "JOBSTREAM_PROCESSES": "1",
            "JOBSTREAM_MAX_JOBS": str(SLOTS),
            "JOBSTREAM_TENANT_HEADROOM": str(case.kept),
            "JOBSTREAM_SHUTDOWN_SECONDS": "0",
            "JOBSTREAM_LOG_LEVEL": "ERROR",
        }
        command = (sys.executable, "-m", "jobstream_workers.main")
        start = partial(asyncio.create_subprocess_exec, cwd=directory, env=environment, start_new_session=True)
        workers: list[Process] = []
        try:
            for _ in range(WORKERS):
                workers += [await start(*command)]
            async with asyncio.timeout(PATIENCE):
                while await client.zcard(keys.WORKERS) < WORKERS:  # noqa: ASYNC110 (how long they need does not count)
                    await asyncio.sleep(0.05)
            yield
        finally:
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.terminate()
            await asyncio.gather(*(worker.wait() for worker in workers))


@contextlib.asynccontextmanager
async def _busy(queue: Queue, case: Case, rng: random.Random) -> AsyncIterator[None]:
    """A has as many jobs as it may have slots beside others, always."""

    async def keep() -> None:
        while True:
            held = await queue.client.zcard(keys.index(status="running")) + await queue.client.zcard(
                keys.index(status="queued")
            )
            await queue.submit_many([_job("a", case, rng) for _ in range(WORKERS * (SLOTS - KEPT) - held)])
            await asyncio.sleep(0.005)

    task = asyncio.create_task(keep()) if case.busy else None
    try:
        yield
    finally:
        if task is not None:
            await cancel(task)


async def _ended(queue: Queue, job_id: str) -> Job:
    while not (job := await queue.get(job_id)).status.done:  # noqa: ASYNC110 (when it is seen does not count)
        await asyncio.sleep(0.05)
    return job


def _times(jobs: Sequence[tuple[int, Job]]) -> Times:
    waits, starts, ends = [], [], []
    for submitted, job in jobs:
        if job.status is not JobStatus.SUCCEEDED or job.started_at is None:
            raise BenchmarkError("a job failed")
        waits.append((job.started_at - job.created_at).total_seconds())
        began, ended = job.result
        starts.append((began - submitted) / 1e9)
        ends.append((ended - submitted) / 1e9)
    return Times(*(figure for times in (waits, starts, ends) for figure in (median(times), _p95(times))))


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    sys.exit(main())
