"""`python -m benchmarks.batches`: a batch beside single submits, and what jobs cost that are in one or follow others.

Commands are those that Redis counts (INFO commandstats), inside scripts too, from the submit to the end of no-ops that
a worker in this process runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from redis.asyncio import Redis

from benchmarks import machine
from benchmarks.processes import BenchmarkError, server
from benchmarks.report import table
from jobstream import keys
from jobstream.queue import BATCH_JOBS, Queue, Submission, SubmitOptions
from jobstream.redis import UrlSource
from jobstream.task import task
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

IN_FLIGHT = 100
ROUND = 2_000
PATIENCE = 120.0


@task
async def noop() -> None:
    """Nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches", description=__doc__)
    parser.add_argument("--jobs", type=int, default=BATCH_JOBS, help="jobs of a batch (10000)")
    options = parser.parse_args(arguments)
    for line in machine.describe():
        print(line)
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        with server("off") as redis_server, tempfile.TemporaryDirectory(prefix="jobstream-bench-") as files:
            found = asyncio.run(_measured(redis_server.url, Path(files), options.jobs))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(["", *found]))
    return 0


async def _measured(url: str, files: Path, jobs: int) -> list[str]:
    source = UrlSource(url)
    client = source.client()
    queue = Queue(client)
    try:
        speeds = [["10,000 jobs" if jobs == BATCH_JOBS else f"{jobs:,} jobs", "s", "jobs/s"]]
        for name, submit in (("one batch", _batch), (f"one by one, {IN_FLIGHT} in flight", _singles)):
            began = time.perf_counter()
            await submit(queue, jobs)
            seconds = time.perf_counter() - began
            speeds.append([name, f"{seconds:.2f}", f"{jobs / seconds:,.0f}"])
            await client.flushall()
        worker = Worker(source, {"noop": noop}, WorkerSettings(redis_url=url, files_dir=files, log_level="WARNING"))
        running = asyncio.create_task(worker.async_run())
        try:
            await worker.ready.wait()
            costs = [[f"{ROUND:,} no-ops", "commands a job", "jobs/s"]]
            for name, submit in (("alone", _many), ("in a batch", _batch), ("each after the first", _after)):
                costs.append([name, *await _cost(client, lambda submit=submit: submit(queue, ROUND))])  # type: ignore[misc]
        finally:
            worker.stop()
            await running
            await worker.close()
    finally:
        await client.aclose()
    return [*table(speeds), "", *table(costs)]


async def _batch(queue: Queue, jobs: int) -> None:
    await queue.submit_batch([Submission("noop", {})] * jobs)


async def _many(queue: Queue, jobs: int) -> None:
    await queue.submit_many([Submission("noop", {})] * jobs)


async def _after(queue: Queue, jobs: int) -> None:
    await queue.submit_batch(
        [Submission("noop", {}, SubmitOptions(after=[0] if number else ())) for number in range(jobs)]
    )


async def _singles(queue: Queue, jobs: int) -> None:
    left = iter(range(jobs))

    async def submit() -> None:
        for _ in left:
            await queue.submit("noop", {})

    await asyncio.gather(*(submit() for _ in range(IN_FLIGHT)))


async def _cost(client: Redis, submit: Callable[[], Awaitable[None]]) -> list[str]:
    """Commands a job, and jobs a second, until all that was submitted has ended."""
    before, ended = await _commands(client), await client.zcard(keys.index(status="succeeded"))
    began = time.perf_counter()
    await submit()
    async with asyncio.timeout(PATIENCE):
        while await client.zcard(keys.index(status="succeeded")) < ended + ROUND:  # noqa: ASYNC110 (events would disturb)
            await asyncio.sleep(0.05)
    seconds = time.perf_counter() - began
    return [f"{(await _commands(client) - before) / ROUND:.1f}", f"{ROUND / seconds:,.0f}"]


async def _commands(client: Redis) -> int:
    stats: dict[str, dict[str, int]] = await client.info("commandstats")
    return sum(stat["calls"] for stat in stats.values())


if __name__ == "__main__":
    sys.exit(main())
