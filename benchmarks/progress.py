"""`python -m benchmarks.progress`: what it costs a tight loop to say how far it is, with a real worker that writes it.

A loop of a microsecond a turn (a million words a second) runs with and without the word, by turns, in a thread and in a
process of a worker that writes to a Redis of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.processes import BenchmarkError, server
from benchmarks.progress_tasks import Pairs
from benchmarks.report import table
from jobstream import keys
from jobstream.queue import Queue
from jobstream.redis import UrlSource
from jobstream_workers.loader import load_tasks
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

PATIENCE = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.progress", description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=100, help="runs of each kind, of a fiftieth of a second each (100)"
    )
    options = parser.parse_args(arguments)
    for line in machine.describe():
        print(line)
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        with server("off") as redis_server, tempfile.TemporaryDirectory(prefix="jobstream-bench-") as files:
            found = asyncio.run(_measured(redis_server.url, Path(files), max(1, options.pairs)))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(["", *table(rows(found))]))
    return 0


async def _measured(url: str, files: Path, count: int) -> dict[str, Pairs]:
    source = UrlSource(url)
    tasks = load_tasks(["benchmarks.progress_tasks"], entry_points=False)
    worker = Worker(source, tasks, WorkerSettings(redis_url=url, files_dir=files, processes=1, log_level="WARNING"))
    running = asyncio.create_task(worker.async_run())
    client = source.client()
    try:
        return {name: await _result(Queue(client), name, count) for name in ("in-thread", "in-process")}
    finally:
        worker.stop()
        await running
        await worker.close()
        await client.aclose()


async def _result(queue: Queue, name: str, count: int) -> Pairs:
    async with asyncio.timeout(PATIENCE), queue.client.pubsub() as pubsub:
        job = await queue.submit(name, {"count": count})
        await pubsub.subscribe(keys.events(job.id))
        while not (job := await queue.get(job.id)).status.done:
            await pubsub.get_message(timeout=1)
    if not isinstance(job.result, dict):
        raise BenchmarkError(f"{name}: {job.error}")
    return job.result


def rows(found: dict[str, Pairs]) -> list[list[str]]:
    """The table: medians over the pairs."""
    lines = [["", "executor", "ns a turn", "ns a word", "share of the loop"]]
    for executor, ways in found.items():
        for way, runs in ways.items():
            silent = median(without for without, _ in runs)
            word = median(speaking - without for without, speaking in runs)
            share = median(1 - without / speaking for without, speaking in runs)
            lines.append([way, executor.removeprefix("in-"), f"{silent:,.0f}", f"{word:.0f}", f"{share:.1%}"])
    return lines


if __name__ == "__main__":
    sys.exit(main())
