"""Many workers in one process: `python -m benchmarks.scale_fleet --url URL --workers N`, for `benchmarks.scale`.

They are real ones, with their connections, leases, heartbeats and timers, so Redis sees a fleet; only this process's
own CPU time is no fleet's. It says `ready` when all are announced, answers `marks`, and ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import uvloop

from benchmarks.marks import MARKS
from benchmarks.systems.jobstream import stamp
from jobstream.redis import UrlSource
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker


async def run(url: str, count: int) -> None:
    """Start them evenly over a second, so that their polls do not fall together; stop when stdin ends."""
    settings = WorkerSettings(redis_url=url, log_level="ERROR")
    workers = [Worker(UrlSource(url), {stamp.name: stamp}, settings) for _ in range(count)]
    running = []
    for worker in workers:
        running.append(asyncio.create_task(worker.main()))
        await asyncio.sleep(1 / count)
    for worker in workers:
        await worker.ready.wait()
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline) == "marks\n":
        print(json.dumps(MARKS.take()), flush=True)
    for worker in workers:
        worker.stop()
    await asyncio.wait(running, timeout=10)
    for worker in workers:
        await worker.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(run(options.url, options.workers))


if __name__ == "__main__":
    main()
