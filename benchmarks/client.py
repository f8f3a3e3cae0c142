"""A client process of one system: `python -m benchmarks.client REFERENCE --url URL`.

Answers each order, a line of JSON on stdin, with a line of JSON. Ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

from benchmarks.system import System, load_system


async def enqueue(system: System, *, jobs: int, in_flight: int) -> dict[str, Any]:
    """Submit no-ops, so many at a time: how long it took, in seconds."""
    numbers = iter(range(jobs))

    async def submitter() -> None:
        for _ in numbers:
            await system.enqueue()

    began = time.monotonic_ns()
    await asyncio.gather(*(submitter() for _ in range(in_flight)))
    return {"seconds": (time.monotonic_ns() - began) / 1e9}


async def enqueue_many(system: System, *, jobs: int, size: int) -> dict[str, Any]:
    """Submit no-ops, so many in one call, one call after the other: how long it took, in seconds; or that it cannot."""
    began = time.monotonic_ns()
    for _ in range(jobs // size):
        if not await system.enqueue_many(size):
            return {"seconds": None}
    return {"seconds": (time.monotonic_ns() - began) / 1e9}


async def drained(system: System, *, jobs: int) -> dict[str, Any]:
    """Wait until no job is left: when that was, and how often it was looked up (the fewer, the less it disturbs)."""
    began, looks, pause = time.monotonic(), 0, 0.05
    while True:
        left = await system.left()
        looks += 1
        if left == 0:
            return {"at_ns": time.monotonic_ns(), "looks": looks}
        done = jobs - left
        if done:
            pause = (time.monotonic() - began) * left / done / 2
        await asyncio.sleep(min(max(pause, 0.001), 0.5))


async def one_by_one(system: System, *, jobs: int, gap: float) -> dict[str, Any]:
    """Submit a job to an idle worker and await its result, again and again; nanoseconds from submit to result."""
    times = []
    for _ in range(jobs):
        # At random: a fixed rhythm would always meet a polling worker at the same point of its period.
        await asyncio.sleep(random.uniform(0.005, gap))
        sent = time.monotonic_ns()
        await system.result(sent)
        times.append(time.monotonic_ns() - sent)
    return {"results_ns": times}


async def steady(system: System, *, jobs: int, rate: float) -> dict[str, Any]:
    """Submit so many jobs a second, whether or not the earlier ones have begun."""
    began, running = time.monotonic(), set()
    for number in range(jobs):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        task = asyncio.create_task(system.enqueue_stamped(time.monotonic_ns()))
        running.add(task)
        task.add_done_callback(running.discard)
    took = time.monotonic() - began
    await asyncio.gather(*running)
    return {"rate": jobs / took}


ORDERS = {order.__name__: order for order in (enqueue, enqueue_many, drained, one_by_one, steady)}


async def _serve(reference: str, url: str) -> None:
    system = load_system(reference, url)
    await system.open()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        print(json.dumps(await ORDERS[order.pop("order")](system, **order)), flush=True)


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("--url", required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.system, options.url))


if __name__ == "__main__":
    main()
