"""One of two API processes ends: its streams are told and ended at once, and who followed goes on at the other."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from jobstream.client import Client, Event, SyncClient
from jobstream.embedded import ChildRedis
from jobstream.events import DURABLE, read_epoch, read_snapshot
from jobstream.guard import GuardedProcess
from jobstream.redis import UrlSource
from tests.acceptance.service import Service
from tests.chaos.watchers import get
from tests.proxy import Proxy
from tests.speaking_job import SpeakingJob

SSE, LINES, SOCKETS = 250, 200, 50
CLIENTS, BLOCKING_CLIENTS = 12, 4
PROMISED_SECONDS = 1.0
FOR_A_BUSY_MACHINE = 4.0


class Api:
    """An API process at a port of its own."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        directory.mkdir()
        self.service = Service(directory, redis_url=redis_url)
        self.process: GuardedProcess = self.service.start_api()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.service.port


@pytest.fixture
def apis(service_redis: ChildRedis, tmp_path: Path) -> Iterator[tuple[Api, Api]]:
    started: list[Api] = []
    try:
        started += [Api(tmp_path / name, service_redis.url) for name in "ab"]
        yield started[0], started[1]
    finally:
        for api in started:
            api.service.close()


@pytest.fixture
async def client(service_redis: ChildRedis) -> AsyncIterator[Redis]:
    client = UrlSource(service_redis.url, kind="child").client()
    yield client
    await client.aclose()


class Crowd:
    """Streams of every kind to one process; `ends` is the last that each was told."""

    def __init__(self, port: int, job_id: str) -> None:
        self.ends: list[str] = []
        self._port, self._job_id = port, job_id
        self._opening = asyncio.Semaphore(40)
        self._open = 0
        self._all_open = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def gather(self) -> None:
        """Return when all of them stand."""
        kinds = {"text/event-stream": SSE, "application/x-ndjson": LINES}
        self._tasks = [asyncio.create_task(self._stream(kind)) for kind, number in kinds.items() for _ in range(number)]
        self._tasks += [asyncio.create_task(self._socket()) for _ in range(SOCKETS)]
        opened = asyncio.create_task(self._all_open.wait())
        await asyncio.wait([*self._tasks, opened], return_when=asyncio.FIRST_COMPLETED)
        assert self._all_open.is_set(), "a stream ended before all stood"

    async def ended(self) -> None:
        """Return when all have ended as they should: none was cut."""
        await asyncio.gather(*self._tasks)

    def _stands(self) -> None:
        self._opening.release()
        self._open += 1
        if self._open == SSE + LINES + SOCKETS:
            self._all_open.set()

    async def _stream(self, accept: str) -> None:
        await self._opening.acquire()
        async with get(self._port, f"/jobs/{self._job_id}/events", {"Accept": accept}) as answer:
            assert answer.status == 200
            last = b""
            async for piece in answer.pieces():
                if not last:
                    self._stands()
                last = piece
        self.ends.append("retry" if last.startswith((b"retry: ", b'{"id":null,"event":"retry"')) else repr(last))

    async def _socket(self) -> None:
        await self._opening.acquire()
        async with connect(f"ws://127.0.0.1:{self._port}/jobs/{self._job_id}/ws", open_timeout=60) as socket:
            await socket.recv()
            self._stands()
            try:
                while True:
                    await socket.recv()
            except ConnectionClosed:
                self.ends.append(str(socket.close_code))


async def follow(url: str, job_id: str, seen: list[Event], joined: asyncio.Event) -> None:
    """With the client that waits for nobody."""
    async with Client(url, max_pause=0.2, patience=60) as client:
        async for event in client.job(job_id).events():
            seen.append(event)
            joined.set()


async def follow_in_thread(url: str, job_id: str, seen: list[Event], joined: asyncio.Event) -> None:
    """With the blocking client."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with SyncClient(url, max_pause=0.2, patience=60) as client:
            for event in client.job(job_id).events():
                seen.append(event)
                loop.call_soon_threadsafe(joined.set)

    await asyncio.to_thread(read)


async def test_a_process_ends_its_500_streams_at_once_and_clients_go_on_at_another(
    apis: tuple[Api, Api], client: Redis
) -> None:
    ending, staying = apis
    job = await SpeakingJob.start(client)
    ways = [follow] * CLIENTS + [follow_in_thread] * BLOCKING_CLIENTS
    seen: list[list[Event]] = [[] for _ in ways]
    joined = [asyncio.Event() for _ in ways]
    with Proxy(ending.port) as proxy:
        following = [
            asyncio.create_task(way(proxy.url, job.id, events, came))
            for way, events, came in zip(ways, seen, joined, strict=True)
        ]
        crowd = Crowd(ending.port, job.id)
        await crowd.gather()
        await asyncio.gather(*(each.wait() for each in joined))
        await job.log("before")
        proxy.targets = (staying.port,)
        began = time.monotonic()
        os.kill(ending.process.pid, signal.SIGTERM)
        await job.log("meanwhile")
        await asyncio.wait_for(crowd.ended(), 60)
        took = time.monotonic() - began
        exit_code = await asyncio.to_thread(ending.process.wait, 20)
        await job.log("after")
        await job.finish()
        await asyncio.wait_for(asyncio.gather(*following), 60)
    print(f"{len(crowd.ends)} streams ended within {took:.2f} s")
    assert sorted(crowd.ends) == ["1012"] * SOCKETS + ["retry"] * (SSE + LINES)
    assert took < PROMISED_SECONDS + FOR_A_BUSY_MACHINE
    assert exit_code in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in ending.service.log.read_text()
    snapshot = await read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    epoch = await read_epoch(client)
    log = [f"{epoch}-{event.version}" for event in snapshot.events]
    assert [[event.id for event in events if event.event in DURABLE] for events in seen] == [log] * len(ways)
    assert [[event.event for event in events].count("snapshot") for events in seen] == [1] * len(ways)
