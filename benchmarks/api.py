"""Submits and polls over HTTP, beside a bare endpoint on stock arq: `python -m benchmarks.api`.

Each service is one uvicorn process with the same settings, on one Redis of the run's own. The client is this process:
it writes requests that are made beforehand, on connections that are kept, and reads no more of an answer than it must.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import uvicorn
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.machine import describe
from jobstream import task
from jobstream.catalogue import WorkerInfo, beat
from jobstream.embedded import ChildRedis, find_server
from jobstream.redis import UrlSource
from jobstream_api.app import create_app
from jobstream_api.live.edge import Edge
from jobstream_api.settings import ApiSettings

PORT = 18_473
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
BODY = b'{"text": "to be or not to be"}'


@task
async def quick(text: str) -> int:
    """Nobody runs it: here jobs are only handed in."""
    return len(text)


class Words(BaseModel):
    """The input."""

    text: str


def bare(redis: str) -> FastAPI:
    """What one writes with FastAPI and arq alone: a typed body, and `enqueue_job`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pool = await create_pool(RedisSettings.from_dsn(redis))
        yield
        await app.state.pool.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/quick", status_code=202)
    async def submit(words: Words) -> dict[str, str]:
        pool: ArqRedis = app.state.pool
        job = await pool.enqueue_job("quick", text=words.text)
        assert job is not None
        return {"id": job.job_id}

    return app


def serve(kind: str, redis: str) -> None:
    """One service, until it is told to end."""
    ours = create_app(ApiSettings(auth="open"), UrlSource(redis, kind="child"))
    app = bare(redis) if kind == "arq" else Edge(ours)
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)


@contextlib.contextmanager
def running(kind: str, redis: str) -> Iterator[None]:
    """The service as a process."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.api", "--serve", kind, "--redis", redis])
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


class Connection:
    """HTTP/1.1 over one kept connection, just enough of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: bytes, expected: bytes) -> bytes:
        """The body of the answer, which must have the expected status."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + expected), head
        length = LENGTH.search(head)
        return await self._reader.readexactly(int(length[1])) if length else b""

    def close(self) -> None:
        """End it."""
        self._writer.close()


async def connect() -> Connection:
    """A connection, as soon as the service listens."""
    for _ in range(400):
        with contextlib.suppress(OSError):
            return Connection(*await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 24))
        await asyncio.sleep(0.05)
    raise AssertionError("the service does not listen")


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json"] if body else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Load(NamedTuple):
    """What came of a measurement."""

    rate: float
    p50: float
    p99: float


async def load(asked: bytes, expected: bytes, *, connections: int, seconds: float) -> Load:
    """The same request again and again on so many connections; rate per second, times in ms."""
    opened = [await connect() for _ in range(connections)]
    times: list[float] = []
    began = time.perf_counter()

    async def one(connection: Connection) -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            await connection.ask(asked, expected)
            times.append(time.perf_counter() - sent)

    await asyncio.gather(*map(one, opened))
    took = time.perf_counter() - began
    for each in opened:
        each.close()
    times.sort()
    return Load(len(times) / took, times[len(times) // 2] * 1000, times[int(len(times) * 0.99) - 1] * 1000)


async def prepare(url: str) -> None:
    """An empty Redis, in which a worker has announced the task."""
    client = UrlSource(url, kind="child").client()
    await client.flushall()
    await client.config_set("maxmemory", 0)
    worker = WorkerInfo(id="w", tasks=(quick.name,), queues=("default",), slots=1, running=0, started_at=0)
    await beat(client, worker, [quick], life=600)
    await client.aclose()


async def measure(url: str, *, rounds: int, seconds: float) -> dict[str, list[Load]]:
    """All of it, the services one after the other in every round."""
    found: dict[str, list[Load]] = {}
    submit = request("POST", "/quick", BODY)
    for number in range(rounds):
        for kind in ("arq", "jobstream") if number % 2 else ("jobstream", "arq"):
            await prepare(url)
            with running(kind, url):
                connection = await connect()
                first = await connection.ask(submit, b"202")
                for connections in (1, 32):
                    name = f"{kind}: submits, {connections} connections"
                    run = await load(submit, b"202", connections=connections, seconds=seconds)
                    found.setdefault(name, []).append(run)
                if kind == "jobstream":
                    await more(found, json.loads(first)["id"], seconds=seconds)
                connection.close()
    return found


async def more(found: dict[str, list[Load]], job_id: str, *, seconds: float) -> None:
    """What the bare endpoint has not: polls, and a batch."""
    poll = request("GET", f"/jobs/{job_id}")
    unchanged = request("GET", f"/jobs/{job_id}", If_None_Match='W/"1"')
    for name, asked, status in (("polls, 200", poll, b"200"), ("polls, 304", unchanged, b"304")):
        run = await load(asked, status, connections=32, seconds=seconds)
        found.setdefault(f"jobstream: {name}, 32 connections", []).append(run)
    items = b"[" + b",".join([b'{"task":"quick","input":' + BODY + b"}"] * 10_000) + b"]"
    connection = await connect()
    began = time.perf_counter()
    await connection.ask(request("POST", "/jobs/batch", items), b"202")
    took = time.perf_counter() - began
    connection.close()
    found.setdefault("jobstream: a batch of 10,000, jobs/s", []).append(Load(10_000 / took, took * 1000, took * 1000))


def show(found: dict[str, list[Load]]) -> Iterator[str]:
    """The table: medians of the rounds, and the ratios of the rounds' rates."""
    yield f"{'':52}{'/s':>8} {'(least-most)':>17} {'p50 ms':>8} {'p99 ms':>8}"
    for name, runs in found.items():
        rates = [run.rate for run in runs]
        spread = f"({min(rates):,.0f}-{max(rates):,.0f})"
        p50, p99 = (statistics.median(getattr(run, part) for run in runs) for part in ("p50", "p99"))
        yield f"{name:52}{statistics.median(rates):8,.0f} {spread:>17} {p50:8.2f} {p99:8.2f}"
    for connections in (1, 32):
        ours, theirs = (found[f"{kind}: submits, {connections} connections"] for kind in ("jobstream", "arq"))
        ratio = statistics.median(our.rate / their.rate for our, their in zip(ours, theirs, strict=True))
        yield f"submits, {connections} connections: {ratio:.2f} x the bare endpoint's"
    batches, singles = found["jobstream: a batch of 10,000, jobs/s"], found["jobstream: submits, 32 connections"]
    ratio = statistics.median(batch.rate / single.rate for batch, single in zip(batches, singles, strict=True))
    yield f"jobs in a batch of 10,000: {ratio:.1f} x single submits on 32 connections"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--serve", choices=["arq", "jobstream"], help=argparse.SUPPRESS)
    parser.add_argument("--redis", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.redis)
        return
    program = find_server()
    assert program is not None, "install redis-server"
    with tempfile.TemporaryDirectory() as directory, ChildRedis(program, Path(directory)) as server:
        print("\n".join(describe()), flush=True)
        found = asyncio.run(measure(server.url, rounds=options.rounds, seconds=options.seconds))
        print("\n".join(show(found)))


if __name__ == "__main__":
    main()
