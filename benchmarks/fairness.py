"""`python -m benchmarks.fairness`: what one tenant's backlog costs another one, with real workers and a real Redis.

Tenant B submits a job now and then, and its jobs' waits are read from their records, in Redis's own time: while nobody
else is there, while tenant A keeps every slot busy, and while ten thousand jobs of A wait. The last line is the same
without tenants, first come, first served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks import machine
from benchmarks.processes import BenchmarkError, Server, server
from benchmarks.report import table
from jobstream import keys
from jobstream.cancellation import cancel
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, Submission
from jobstream.redis import UrlSource
from jobstream_workers.loader import load_tasks
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

WORKERS, SLOTS = 2, 10
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


CASES = (
    Case("B alone"),
    Case("A keeps all slots busy", busy=True),
    Case("as many of A wait", backlog=True),
    Case("the same without tenants", backlog=True, tenants=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--jobs", type=int, default=150, help="jobs of B in each case (150)")
    parser.add_argument("--backlog", type=int, default=10_000, help="jobs of A that wait (10,000)")
    options = parser.parse_args(arguments)
    for line in machine.describe():
        print(line)
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    lines = [["", "wait p50", "wait p95", "submit to end p50", "p95"]]
    try:
        with server("off") as redis_server:
            for case in CASES:
                redis_server.empty()
                jobs = asyncio.run(_measured(redis_server, case, max(2, options.jobs), options.backlog))
                lines.append([case.title, *_figures(jobs)])
    except (BenchmarkError, TimeoutError) as error:
        print(error or "the jobs did not end", file=sys.stderr)
        return 1
    print("\n".join(["", *table(lines)]))
    return 0


async def _measured(redis_server: Server, case: Case, jobs: int, backlog: int) -> list[Job]:
    source = UrlSource(redis_server.url)
    client = source.client()
    queue, rng = Queue(client), random.Random(1)
    try:
        if case.backlog:
            await queue.submit_many([_job("a", case, rng) for _ in range(backlog)])
        async with _fleet(source), asyncio.timeout(PATIENCE), _busy(queue, case, rng):
            await asyncio.sleep(1)
            ids = []
            for _ in range(jobs):
                ids += await queue.submit_many([_job("b", case, rng)])
                await asyncio.sleep(rng.uniform(0, 2 * PAUSE))
            return [await _ended(queue, job_id) for job_id in ids]
    finally:
        await client.aclose()


def _job(owner: str, case: Case, rng: random.Random) -> Submission:
    return Submission("works", {"seconds": rng.uniform(SHORTEST, LONGEST)}, owner=owner if case.tenants else None)


@contextlib.asynccontextmanager
async def _fleet(source: UrlSource) -> AsyncIterator[None]:
    tasks = load_tasks(["benchmarks.fairness_tasks"], entry_points=False)
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as files:
        settings = WorkerSettings(files_dir=Path(files), processes=1, max_jobs=SLOTS, shutdown_seconds=0)
        workers = [Worker(source, tasks, settings) for _ in range(WORKERS)]
        running = [asyncio.create_task(worker.async_run()) for worker in workers]
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            await asyncio.gather(*running)
            for worker in workers:
                await worker.close()


@contextlib.asynccontextmanager
async def _busy(queue: Queue, case: Case, rng: random.Random) -> AsyncIterator[None]:
    """A has as many jobs as there are slots, always."""

    async def keep() -> None:
        while True:
            held = await queue.client.zcard(keys.queue("default"))
            await queue.submit_many([_job("a", case, rng) for _ in range(WORKERS * SLOTS - held)])
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


def _figures(jobs: Sequence[Job]) -> list[str]:
    if any(job.status is not JobStatus.SUCCEEDED or not job.started_at or not job.finished_at for job in jobs):
        raise BenchmarkError("a job failed")
    waits = [(job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at]
    whole = [(job.finished_at - job.created_at).total_seconds() for job in jobs if job.finished_at]
    return [
        f"{1000 * value:,.0f} ms"
        for times in (waits, whole)
        for value in (median(times), quantiles(times, n=20, method="inclusive")[-1])
    ]


if __name__ == "__main__":
    sys.exit(main())
