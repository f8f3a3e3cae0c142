"""`python -m benchmarks.live`: thousands of clients of one API process, beside other ways to serve them, in rounds."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.peers import python_of
from benchmarks.processes import ROOT, BenchmarkError, server
from benchmarks.systems import Entry
from jobstream.outbox import Batch
from jobstream.outbox import Entry as Said
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import UrlSource
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter

SYSTEMS = ("floor", "jobstream", "native", "sse-starlette", "per-client")
JOBS = 1_000
SPREAD_RATE = 500.0
"""Deliveries a second over all clients, spread over 1,000 jobs."""
HOT_EVENTS = 5.0
"""Events a second of the one job that all watch."""
PER_CLIENT_MOST = 1_000
"""More clients than this are not given to the way that opens a Redis connection for each."""
OURS = ("floor", "jobstream")
"""Measured in every round; the others once, where `_is_telling`, unless `--all` is said."""
CROWDS = 2
PATIENCE = 120.0


class Figures(NamedTuple):
    """Of one run."""

    kilobytes: float
    cpu_us: float
    share: float
    p50: float
    p99: float
    connect_us: float
    ended: float
    """Streams that the server has ended; their clients came back."""


def main() -> int:
    """Run; the exit code is 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--clients", default="1000,5000,10000")
    parser.add_argument("--shapes", default="spread,hot")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--all", action="store_true", help="the other ways, too, with all clients in every round")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lines = machine.describe()
    if (warning := machine.load_warning()) is not None:
        lines.append(f"warning: {warning}")
    results: dict[tuple[str, int, str], list[Figures | str]] = {}
    systems = options.systems.split(",")
    try:
        for number in range(options.rounds):
            for shape in options.shapes.split(","):
                for clients in map(int, options.clients.split(",")):
                    for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
                        if system not in OURS and not (options.all or (number == 0 and _is_telling(shape, clients))):
                            continue
                        began = time.monotonic()
                        print(f"round {number + 1}: {shape}, {clients} clients, {system}", file=sys.stderr, flush=True)
                        results.setdefault((shape, clients, system), []).append(
                            _measure(system, shape, clients, options.seconds)
                        )
                        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print("\n".join(lines))
    _print(results)
    return 0


def _is_telling(shape: str, clients: int) -> bool:
    """A few thousand tell nothing that few and many do not, and more of a hot job's are more than the others can."""
    return clients <= 1_000 or (shape == "spread" and clients >= 10_000)


def _measure(system: str, shape: str, clients: int, seconds: float) -> Figures | str:
    if system == "per-client" and clients > PER_CLIENT_MOST:
        return "left out: too many clients"
    try:
        with server("off") as redis_server:
            return asyncio.run(_run(redis_server.url, system, shape, clients, seconds))
    except (BenchmarkError, TimeoutError, OSError) as error:
        return f"failed: {error or type(error).__name__}"


async def _run(url: str, system: str, shape: str, clients: int, seconds: float) -> Figures:
    client = UrlSource(url, kind="child").client()
    writers = []
    for start in range(0, JOBS if shape == "spread" else 1, 100):
        count = min(100, JOBS if shape == "spread" else 1)
        await asyncio.gather(
            *[Queue(client).submit("speak", {}, options=SubmitOptions(queue=f"bench-{start}")) for _ in range(count)]
        )
        while count > 0:
            claimed, _ = await claim(client, queue=f"bench-{start}", worker_id="bench", slots=count, lease=600)
            writers += [(one.id, AttemptWriter(client, one)) for one in claimed]
            count -= len(claimed)
    port = _free_port()
    rate = HOT_EVENTS if shape == "hot" else SPREAD_RATE * JOBS / clients
    with _serving(system, url, port) as pid:
        idle_memory, idle_cpu = _memory(pid), _cpu_ns(pid)
        async with _crowds(port, clients, [job_id for job_id, _ in writers]) as crowds:
            await asyncio.sleep(1.0)  # what the joins have left to do
            kilobytes = (_memory(pid) - idle_memory) / clients / 1024
            connect_us = (_cpu_ns(pid) - idle_cpu) / clients / 1000
            await _speak(writers, rate, 1.0)
            await asyncio.sleep(0.5)
            for crowd in crowds:
                _tell(crowd, "start")
            cpu = _cpu_ns(pid)
            await _speak(writers, rate, seconds)
            await asyncio.sleep(0.7)
            used = _cpu_ns(pid) - cpu
            answers = []
            for crowd in crowds:
                _tell(crowd, "stop")
                answers.append(json.loads(await _hear(crowd)))
    await client.aclose()
    deliveries = sum(answer["deliveries"] for answer in answers)
    expected = round(seconds * rate) * (clients if shape == "hot" else clients / JOBS)
    if not deliveries:
        raise BenchmarkError("nothing was delivered")
    return Figures(
        kilobytes,
        used / deliveries / 1000,
        deliveries / expected,
        max(answer["late"][0] for answer in answers if answer["late"]),
        max(answer["late"][1] for answer in answers if answer["late"]),
        connect_us,
        sum(answer["ended"] for answer in answers),
    )


async def _speak(writers: list[tuple[str, AttemptWriter]], rate: float, seconds: float) -> None:
    """Log lines at even distances, each with the moment in it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(round(seconds * rate)):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        _, writer = writers[number % len(writers)]
        text = b'{"level":"info","message":"line %d of a job that has much to say","t":%d}' % (
            number,
            time.monotonic_ns(),
        )
        await writer.emit(Batch(None, [Said("log", text)], 0))


@contextlib.contextmanager
def _serving(system: str, url: str, port: int) -> Iterator[int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    if system == "jobstream":
        command = [sys.executable, "-m", "jobstream_api.main"]
        environment |= {"JOBSTREAM_REDIS_URL": url, "JOBSTREAM_PORT": str(port), "JOBSTREAM_MAX_STREAMS": "20000"}
        environment |= {"JOBSTREAM_LOG_LEVEL": "ERROR"}
    else:
        entry = Entry(system, "", "", (), {}, peer=system == "sse-starlette")
        command = [python_of(entry), "-m", "benchmarks.live.servers", system, url, str(port)]
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(port, process, Path(directory) / "log")
            time.sleep(1.0)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import socket

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise BenchmarkError(log.read_text(errors="replace")[-1000:] or "the server does not listen")


@contextlib.asynccontextmanager
async def _crowds(port: int, clients: int, jobs: list[str]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    crowds = []
    try:
        for number in range(CROWDS):
            first = number * (clients // CROWDS) % len(jobs)
            wanted = jobs[first:] + jobs[:first]
            command = ["-m", "benchmarks.live.crowd", str(port), str(clients // CROWDS), *wanted]
            pipe = asyncio.subprocess.PIPE
            crowds.append(
                await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe, cwd=ROOT)
            )
        for crowd in crowds:
            if (said := await _hear(crowd)) != "connected":
                raise BenchmarkError(said)
        yield crowds
    finally:
        for crowd in crowds:
            if crowd.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    crowd.kill()
            await crowd.wait()


def _tell(crowd: asyncio.subprocess.Process, order: str) -> None:
    assert crowd.stdin is not None
    crowd.stdin.write(order.encode() + b"\n")


async def _hear(crowd: asyncio.subprocess.Process) -> str:
    assert crowd.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await crowd.stdout.readline()).decode().strip()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _cpu_ns(pid: int) -> int:
    # Linux: the clock of another process, see clock_getcpuclockid(3).
    return time.clock_gettime_ns(~pid << 3 | 2)


def _print(results: dict[tuple[str, int, str], list[Figures | str]]) -> None:
    titles = ("KB/client", "CPU µs/delivery", "x floor", "delivered", "p50 ms", "p99 ms", "CPU µs/connect", "ended")
    shape_before = None
    for (shape, clients, system), runs in results.items():
        if (shape, clients) != shape_before:
            shape_before = (shape, clients)
            print(f"\n{shape}, {clients:,} clients\n{'':14}" + "".join(f"{title:>17}" for title in titles))
        good = [run for run in runs if isinstance(run, Figures)]
        for number, run in enumerate(runs, start=1):
            if isinstance(run, str):
                print(f"{system:14}  round {number}: {run}")
        if not good:
            continue
        middle = Figures(*[statistics.median(column) for column in zip(*good, strict=True)])
        floors = [run for run in results.get((shape, clients, "floor"), []) if isinstance(run, Figures)]
        ratio = (
            statistics.median([run.cpu_us for run in good]) / statistics.median([run.cpu_us for run in floors])
            if floors
            else 0.0
        )
        cells = (
            f"{middle.kilobytes:.1f}",
            f"{middle.cpu_us:.1f}",
            f"{ratio:.2f}",
            f"{middle.share:.0%}",
            f"{middle.p50:.2f}",
            f"{middle.p99:.1f}",
            f"{middle.connect_us:.0f}",
            f"{max(run.ended for run in good):.0f}",
        )
        print(f"{system:14}" + "".join(f"{cell:>17}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
