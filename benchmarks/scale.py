"""How far one Redis carries: `python -m benchmarks.scale`.

Measures what each thing costs Redis (a job, an event and its listeners, a worker that does nothing, a record's memory)
with real workers, up to a thousand of them, and then says by arithmetic what larger services need.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import IO, cast

from redis.asyncio import Redis

from benchmarks import machine
from benchmarks.measure import Lab, throughput
from benchmarks.processes import ROOT, Server, server
from benchmarks.systems import SYSTEMS
from jobstream import keys
from jobstream.gauge import ProgressState
from jobstream.outbox import Batch
from jobstream.queue import Queue, Submission
from jobstream.redis import UrlSource
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter

FLEETS = (1, 10, 100, 1000)
HOST = 250
"""Workers in one process."""
SECONDS = 10.0
RATE = 50.0
"""Jobs a second that a fleet is given, for its wake-ups."""
LISTENERS = (0, 1, 10, 100)
EVENTS = 5_000
RECORDS = 10_000
BUSY = 0.5
"""Share of one core that a Redis may be busy with in the arithmetic: the rest is for its peaks."""


@dataclass(frozen=True)
class Costs:
    """What was measured: microseconds of Redis's CPU, and bytes of its memory."""

    job: float
    idle_worker: float
    """Per second."""
    event: float
    """One that is written: record, version, message."""
    listener: float
    """Per event and process that listens."""
    record: float
    waiting: float


@contextlib.contextmanager
def fleet(url: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many workers, in processes of `HOST`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        hosts = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scale_fleet", "--url", url, "--workers", str(min(HOST, count - at))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=directory,
                env=environment | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
            for at in range(0, count, HOST)
        ]
        try:
            for host in hosts:
                if cast("IO[str]", host.stdout).readline() != "ready\n":
                    raise RuntimeError("a fleet did not start")
            yield hosts
        finally:
            for host in hosts:
                cast("IO[str]", host.stdin).close()
            for host in hosts:
                try:
                    host.wait(30)
                except subprocess.TimeoutExpired:
                    host.kill()
                    host.wait()


def delays_ms(hosts: Sequence[subprocess.Popen[str]]) -> list[float]:
    """How late each job began, since the last call."""
    delays: list[float] = []
    for host in hosts:
        stdin, stdout = cast("IO[str]", host.stdin), cast("IO[str]", host.stdout)
        stdin.write("marks\n")
        stdin.flush()
        delays += [delay / 1e6 for delay in json.loads(stdout.readline())["delays_ns"]]
    return sorted(delays)


async def measure_fleet(redis_server: Server, count: int) -> float:
    """Print what a fleet costs while it is idle, and how its wake-ups work; µs of Redis per idle worker and second."""
    redis_server.empty()
    queue = Queue(UrlSource(redis_server.url).client())
    with fleet(redis_server.url, count) as hosts:
        await asyncio.sleep(3)
        before = redis_server.counters()
        await asyncio.sleep(SECONDS)
        after = redis_server.counters()
        idle_us = (after["cpu"] - before["cpu"]) * 1e6 / SECONDS
        idle_commands = (after["reads"] - before["reads"]) / SECONDS
        delays_ms(hosts)
        before, began = after, time.monotonic()
        jobs = round(RATE * SECONDS)
        for number in range(jobs):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            await queue.submit("stamp", {"sent_ns": time.monotonic_ns()})
        delays: list[float] = []
        while len(delays) < jobs:
            await asyncio.sleep(0.1)
            delays += delays_ms(hosts)
        after, took = redis_server.counters(), time.monotonic() - began
        per_job_us = ((after["cpu"] - before["cpu"]) * 1e6 - idle_us * took) / jobs
        per_job_reads = ((after["reads"] - before["reads"]) - idle_commands * took) / jobs
    await queue.client.aclose()
    delays.sort()
    print(
        f"{count:8,} {idle_us / 1e4:9.1f} % {idle_us / count:9.0f} {idle_commands / count:9.1f} {per_job_us:10.0f} "
        f"{per_job_reads:9.1f} {median(delays):9.2f} {delays[int(len(delays) * 0.99)]:9.2f}",
        flush=True,
    )
    return idle_us / count


@contextlib.asynccontextmanager
async def listening(url: str, channel: str, count: int) -> AsyncIterator[None]:
    """Connections that hear the channel and throw away what they hear, as cheaply as can be."""

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.heard = asyncio.get_running_loop().create_future()
            name = channel.encode()
            cast("asyncio.Transport", transport).write(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%s\r\n" % (len(name), name))

        def data_received(self, data: bytes) -> None:
            if not self.heard.done():
                self.heard.set_result(None)

    loop = asyncio.get_running_loop()
    path = url.removeprefix("unix://").partition("?")[0]
    made = [await loop.create_unix_connection(Deaf, path) for _ in range(count)]
    try:
        for _, protocol in made:
            await protocol.heard
        yield
    finally:
        for transport, _ in made:
            transport.close()


async def measure_events(redis_server: Server) -> tuple[float, float]:
    """Print the cost of progress by its listeners; µs of Redis of an event, and of each listener more."""
    redis_server.empty()
    client: Redis = UrlSource(redis_server.url).client()
    costs: dict[int, float] = {}
    queued = await Queue(client).submit("stamp", {"sent_ns": 0})
    (job,), _ = await claim(client, queue="default", worker_id="w", slots=1, lease=600)
    writer = AttemptWriter(client, job)
    for count in LISTENERS:
        async with listening(redis_server.url, keys.events(queued.id), count):
            before = redis_server.counters()["cpu"]
            for start in range(0, EVENTS, 50):  # as many jobs would: what is said in one turn travels together
                said = [Batch(ProgressState(start + at, EVENTS, "half"), [], 0) for at in range(50)]
                await asyncio.gather(*[writer.emit(batch) for batch in said])
            costs[count] = (redis_server.counters()["cpu"] - before) * 1e6 / EVENTS
        print(f"{count:8,} {costs[count]:9.1f}", flush=True)
    await client.aclose()
    return costs[0], (costs[LISTENERS[-1]] - costs[0]) / LISTENERS[-1]


async def measure_memory(redis_server: Server) -> tuple[float, float]:
    """Bytes of a job that waits, and of one that has ended."""

    def used() -> float:
        return float(cast("dict[str, float]", redis_server.client.info("memory"))["used_memory"])

    redis_server.empty()
    client = UrlSource(redis_server.url).client()
    queue, empty = Queue(client), used()
    await queue.submit_many([Submission("stamp", {"sent_ns": 0})] * RECORDS)
    waiting = (used() - empty) / RECORDS
    with fleet(redis_server.url, 4) as hosts:
        ended = 0
        while ended < RECORDS:
            await asyncio.sleep(0.2)
            ended += len(delays_ms(hosts))
    left = (used() - empty) / RECORDS
    await client.aclose()
    return left, waiting


def arithmetic(costs: Costs) -> str:
    """What larger services need, from the figures above. A Redis executes commands on one core."""
    lines = [
        f"{'jobs a day':>14} {'a second':>10} {'Redis, cores':>13} {'shards':>7} {'GB, kept an hour':>17} {'a day':>8}"
    ]
    for jobs in (1e6, 1e7, 1e8, 1e9):
        rate = jobs / 86_400
        cores = rate * (costs.job + 10 * costs.event) / 1e6
        hour, day = (jobs * share * costs.record / 1e9 for share in (1 / 24, 1))
        lines.append(f"{jobs:14,.0f} {rate:10,.0f} {cores:13.2f} {-(-cores // BUSY):7.0f} {hour:17.1f} {day:8.1f}")
    lines.append(f"(each job with 10 progress events; a shard's Redis is busy for {BUSY:.0%} at most)\n")
    lines.append(f"{'workers':>14} {'Redis, idle':>13}")
    lines += [f"{workers:14,} {workers * costs.idle_worker / 1e4:11.1f} %" for workers in (100, 1_000, 10_000)]
    lines.append(
        f"\n{'watchers':>14} {'API processes':>14} {'Redis, at 1 event/s each on one job':>37} {'own jobs':>12}"
    )
    for watchers in (10_000, 100_000, 1_000_000):
        processes = -(-watchers // 10_000)
        hot = costs.event + processes * costs.listener
        own = watchers * (costs.event + costs.listener) / 1e4
        lines.append(f"{watchers:14,} {processes:14,} {hot / 1e4:35.2f} % {own:10.0f} %")
    lines.append(
        "(10,000 watchers a process; 'own jobs': each watches another job, every one says something each second)"
    )
    return "\n".join(lines)


async def run(fleets: Sequence[int]) -> None:
    """Measure and print."""
    print("\n".join(machine.describe()))
    with server("everysec") as redis_server:
        print(f"{redis_server.version}, append-only file: everysec\n")
        entry = SYSTEMS["jobstream"]
        lab = Lab(redis_server, entry, sys.executable)
        runs = [await throughput(lab, slots=100, workers=1, jobs=5_000) for _ in range(3)]
        job = median(each.values["redis_us_per_job"] for each in runs)
        print(f"a no-op job, three events: {job:.0f} µs of Redis\n")
        print("a fleet: idle, then 50 jobs a second")
        print(
            f"{'workers':>8} {'Redis idle':>11} {'µs each/s':>9} {'calls/s':>9} {'Redis µs/job':>10} {'calls/job':>9} "
            f"{'p50 ms':>9} {'p99 ms':>9}"
        )
        idle = [await measure_fleet(redis_server, count) for count in fleets]
        print("\nprogress that is written: µs of Redis by how many processes listen")
        event, listener = await measure_events(redis_server)
        record, waiting = await measure_memory(redis_server)
        print(f"\na job that waits: {waiting:,.0f} bytes; one that has ended: {record:,.0f}\n")
    print(arithmetic(Costs(job, idle[-1], event, listener, record, waiting)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fleets",
        default=",".join(map(str, FLEETS)),
        type=lambda text: [int(word) for word in text.split(",")],
        help="how many workers, each for about 30 s (default: %(default)s)",
    )
    asyncio.run(run(parser.parse_args().fleets))


if __name__ == "__main__":
    main()
