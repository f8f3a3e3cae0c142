"""The measurements: each runs one system once, and gives numbers. All times are in the unit that the name says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processes import BenchmarkError, Child, Server, child
from benchmarks.systems import Entry

WARM_UP = 5
"""Jobs whose latency is not counted: the first ones load scripts and open connections."""
STEADY_RATE = 200.0
"""Jobs a second of the measurement under load."""
STEADY_SLOTS = 100
IDLE_SLOTS = 10
BATCH = 1_000
"""Jobs of one batch."""


@dataclass(frozen=True)
class Measured:
    """One run. `values` are compared between systems; `samples` are in ms, for percentiles over all rounds."""

    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    disturbed: float = 0.0
    """Share of the machine's CPU that others used meanwhile."""


class Lab:
    """Where a system is measured: the server, and the system's interpreter."""

    def __init__(self, server: Server, entry: Entry, python: str) -> None:
        self.server = server
        self.entry = entry
        self._python = python

    def client(self) -> contextlib.AbstractAsyncContextManager[Child]:
        """A client process."""
        return child(self._python, "benchmarks.client", self.entry, self.server.url)

    @contextlib.asynccontextmanager
    async def workers(self, count: int, slots: int, *more: str) -> AsyncIterator[list[Child]]:
        """Worker processes, waiting for `go`. `more`: options of `benchmarks.worker`."""
        async with contextlib.AsyncExitStack() as stack:
            options = ("--slots", str(slots), *more)
            yield [
                await stack.enter_async_context(
                    child(self._python, "benchmarks.worker", self.entry, self.server.url, *options)
                )
                for _ in range(count)
            ]


async def throughput(lab: Lab, *, slots: int, workers: int, jobs: int) -> Measured:
    """No-ops a second, from the first that begins to the last that is stored; and what each costs.

    All jobs are queued before the workers begin.
    """
    server = lab.server
    server.empty()
    async with lab.client() as client, lab.workers(workers, slots) as running:
        await client.ask("enqueue", jobs=jobs, in_flight=50)
        before = server.counters()
        for worker in running:
            worker.tell("go")
        end = await client.ask("drained", jobs=jobs)
        after, cpu = server.counters(), [worker.cpu_ns for worker in running]
        marks = [await worker.ask("marks") for worker in running]
    ran = [mark["ran"] for mark in marks]
    if sum(ran) != jobs:
        raise BenchmarkError(f"{lab.entry.name}: {sum(ran)} of {jobs} jobs ran")
    began = min(mark["first_ns"] for mark in marks if mark["ran"])
    used = sum(now - mark["first_cpu_ns"] for now, mark in zip(cpu, marks, strict=True) if mark["ran"])
    return Measured(
        values={
            "jobs_per_s": jobs / ((end["at_ns"] - began) / 1e9),
            "worker_us_per_job": used / 1e3 / jobs,
            "redis_us_per_job": (after["cpu"] - before["cpu"]) * 1e6 / jobs,
            "commands_per_job": (after["commands"] - before["commands"] - end["looks"]) / jobs,
            "reads_per_job": (after["reads"] - before["reads"] - end["looks"]) / jobs,
            "least_busy_worker": min(ran) * workers / jobs,
            "slots": slots,
            "workers": workers,
            "jobs": jobs,
        }
    )


async def idle(lab: Lab, *, jobs: int) -> Measured:
    """Latency of single jobs: submit to start on an idle worker, and submit to result in the client's hands."""
    lab.server.empty()
    gap = max(0.03, lab.entry.poll)
    async with lab.client() as client, lab.workers(1, IDLE_SLOTS) as (worker,):
        worker.tell("go")
        await client.ask("one_by_one", jobs=WARM_UP, gap=gap)
        await worker.ask("marks")
        answer = await client.ask("one_by_one", jobs=jobs, gap=gap)
        marks = await worker.ask("marks")
    return Measured(samples={"start": _delays(lab, marks, jobs), "result": [at / 1e6 for at in answer["results_ns"]]})


async def steady(lab: Lab, *, jobs: int) -> Measured:
    """Submit to start, while jobs come evenly at STEADY_RATE."""
    lab.server.empty()
    async with lab.client() as client, lab.workers(1, STEADY_SLOTS) as (worker,):
        worker.tell("go")
        await client.ask("one_by_one", jobs=WARM_UP, gap=0.03)
        await worker.ask("marks")
        answer = await client.ask("steady", jobs=jobs, rate=STEADY_RATE)
        await client.ask("drained", jobs=jobs)
        marks = await worker.ask("marks")
    return Measured(values={"offered_per_s": answer["rate"]}, samples={"start": _delays(lab, marks, jobs)})


async def enqueue(lab: Lab, *, one_by_one: int, in_flight: int) -> Measured:
    """Submits a second by one client process: each awaited before the next, 100 awaited at a time, and 1,000 in one
    call, where the library has one that stores all or none. No worker."""
    lab.server.empty()
    async with lab.client() as client:
        await client.ask("enqueue", jobs=100, in_flight=10)
        alone = await client.ask("enqueue", jobs=one_by_one, in_flight=1)
        await client.ask("enqueue", jobs=200, in_flight=100)  # opens the connections
        together = await client.ask("enqueue", jobs=in_flight, in_flight=100)
        await client.ask("enqueue_many", jobs=BATCH, size=BATCH)
        batch = await client.ask("enqueue_many", jobs=max(in_flight // BATCH, 1) * BATCH, size=BATCH)
    values = {"one_by_one": one_by_one / alone["seconds"], "100_in_flight": in_flight / together["seconds"]}
    if batch["seconds"] is not None:
        values["batch"] = max(in_flight // BATCH, 1) * BATCH / batch["seconds"]
    return Measured(values=values)


def _delays(lab: Lab, marks: dict[str, Any], jobs: int) -> list[float]:
    delays = [delay / 1e6 for delay in marks["delays_ns"]]
    if len(delays) != jobs:
        raise BenchmarkError(f"{lab.entry.name}: {len(delays)} of {jobs} jobs ran")
    return delays
