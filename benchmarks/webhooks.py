"""`python -m benchmarks.webhooks`: deliveries a second, and what a slow or dead receiver costs the others.

The ends of some thousand jobs wait in the mailbag, each to be told to one of a hundred receivers; one worker process
delivers them. The receivers are a process of their own, a hundred loopback addresses; a slow one takes each request and
answers none, where one is dead nobody listens. The floor is httpx2 alone, as many requests at once as the
worker has slots for webhooks, the same bodies to the same receivers. What counts is when the receivers that are well
have got theirs. Each round begins with another case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import httpx2

from benchmarks import machine
from benchmarks.processes import PATIENCE, ROOT, BenchmarkError, Child, Server, server
from benchmarks.report import table
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import UrlSource

RECEIVERS, SLOTS = 100, 50
"""How many there are, and requests at once."""
BODY = b'{"type":"job.cancelled","timestamp":"2026-11-21T06:40:00.000Z","data":{}}' + b" " * 900
"""About as large as the message of a small job."""


@dataclass(frozen=True)
class Case:
    """Who delivers, and how the one receiver is."""

    title: str
    bare: bool = False
    odd: str = ""
    odds: int = 0
    """How many of the receivers, the first ones, are slow or dead."""


CASES = [
    Case("httpx2 alone", bare=True),
    Case("jobstream, all receivers well"),
    Case("jobstream, one of 100 never answers", odd="slow", odds=1),
    Case("jobstream, ten of 100 never answer", odd="slow", odds=10),
    Case("jobstream, one of 100 is not there", odd="dead", odds=1),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webhooks", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=3_000, help="of each case (3,000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--only", type=int, help="only this case: 0 to 4")
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.receive is not None:
        asyncio.run(_receive(options.receive[0], odds=int(options.receive[1])))
        return 0
    for line in machine.describe():
        print(line)
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    found: dict[str, list[float]] = {}
    try:
        with server("off") as redis_server:
            for number in range(options.rounds):
                at = number % len(CASES)
                for case in [*CASES[at:], *CASES[:at]] if options.only is None else [CASES[options.only]]:
                    redis_server.empty()
                    rate = asyncio.run(_measured(redis_server, case, options.deliveries))
                    found.setdefault(case.title, []).append(rate)
    except (BenchmarkError, TimeoutError) as error:
        print(error or "the deliveries did not come", file=sys.stderr)
        return 1
    print("\n".join(["", *_report(found)]))
    return 0


def _report(found: dict[str, list[float]]) -> list[str]:
    well = found.get(CASES[1].title) or next(iter(found.values()))
    lines = [["deliveries a second to receivers that are well", "median", "(least-most)", "beside all well"]]
    for case in CASES:
        if not (rates := found.get(case.title)):
            continue
        ratio = median(rate / other for rate, other in zip(rates, well, strict=True))
        lines.append([case.title, f"{median(rates):,.0f}", f"({min(rates):,.0f}-{max(rates):,.0f})", f"{ratio:.2f} x"])
    return table(lines)


async def _measured(redis_server: Server, case: Case, deliveries: int) -> float:
    """Deliveries a second, of those to receivers that are well."""
    async with _receivers(case) as receivers, asyncio.timeout(PATIENCE * 2):
        port = int(await receivers.hear())
        urls = [f"http://{_host(number % RECEIVERS)}:{port}/" for number in range(deliveries)]
        well = sum(number % RECEIVERS >= case.odds for number in range(deliveries))
        if case.bare:
            await _post(urls)
        else:
            await _fill(redis_server, urls)
            async with _worker(redis_server):
                return await _rate(receivers, well)
        return await _rate(receivers, well)


async def _rate(receivers: Child, well: int) -> float:
    """Once so many have come: how fast, from the first to the last."""
    while True:
        said = await receivers.ask("count", well=well)
        if said["count"] >= well:
            return well / float(said["seconds"])
        await asyncio.sleep(0.1)


async def _post(urls: Sequence[str]) -> None:
    left = iter(urls)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=2 * RECEIVERS)
    async with httpx2.AsyncClient(limits=limits, trust_env=False) as client:

        async def post() -> None:
            for url in left:
                async with client.stream("POST", url, content=BODY) as response:
                    await response.aread()

        await asyncio.gather(*(post() for _ in range(SLOTS)))


async def _fill(redis_server: Server, urls: Sequence[str]) -> None:
    """Jobs that have ended, and whose receivers have not been told."""
    client = UrlSource(redis_server.url).client()
    queue = Queue(client)
    try:
        ids = await queue.submit_many(
            [Submission("noop", {"text": "x" * 200}, SubmitOptions(callback_url=url)) for url in urls]
        )
        for at in range(0, len(ids), 200):
            await asyncio.gather(*(queue.cancel(job_id) for job_id in ids[at : at + 200]))
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def _worker(redis_server: Server) -> AsyncIterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        environment |= {
            "PYTHONPATH": str(ROOT),
            "JOBSTREAM_REDIS_URL": redis_server.url,
            "JOBSTREAM_TASKS": "benchmarks.fairness_tasks",
            "JOBSTREAM_FILES_DIR": directory,
            "JOBSTREAM_PROCESSES": "1",
            "JOBSTREAM_WEBHOOK_ALLOW": "127.0.0.0/8",
            "JOBSTREAM_WEBHOOK_SLOTS": str(SLOTS),
            "JOBSTREAM_SHUTDOWN_SECONDS": "0",
            "JOBSTREAM_LOG_LEVEL": "ERROR",
        }
        command = (sys.executable, "-m", "jobstream_workers.main")
        worker = await asyncio.create_subprocess_exec(*command, cwd=directory, env=environment, start_new_session=True)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()  # what is left to a slow receiver is nobody's concern
            await worker.wait()


def _host(number: int) -> str:
    return f"127.0.{number // 200 + 1}.{number % 200 + 1}"


async def _receive(odd: str, *, odds: int) -> None:
    """The receivers: print a port, then answer each line with how many requests have come, and in which time."""
    times: list[int] = []
    answer = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"

    async def serve(slow: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
                await reader.readexactly(int(size or 0))
                if slow:
                    await reader.read()  # until the client has had enough
                    return
                times.append(time.monotonic_ns())
                writer.write(answer)
        writer.close()

    port = 0
    for number in range(RECEIVERS):
        strange = number < odds
        if strange and odd == "dead":
            continue
        started = await asyncio.start_server(partial(serve, strange), _host(number), port, backlog=1_000)
        port = port or started.sockets[0].getsockname()[1]
    print(port, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wanted = int(line.rpartition(":")[2].strip(" }\n"))
        seconds = (times[wanted - 1] - times[0]) / 1e9 if len(times) >= wanted else 0
        print(f'{{"count": {len(times)}, "seconds": {seconds}}}', flush=True)


@contextlib.asynccontextmanager
async def _receivers(case: Case) -> AsyncIterator[Child]:
    """The process of the receivers."""
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        log = Path(directory) / "stderr"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.webhooks", "--receive", case.odd or "none", str(case.odds)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                cwd=ROOT,
                start_new_session=True,
            )
        receivers = Child(process, "the receivers", log)
        try:
            yield receivers
        finally:
            await asyncio.shield(receivers.end())


if __name__ == "__main__":
    sys.exit(main())
