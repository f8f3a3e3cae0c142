"""Many streams, streams that are not read, and the end of the process: nobody is harmed, and all are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess
from jobstream.redis import UrlSource
from tests.acceptance.service import Service
from tests.acceptance.wire import events, frames, problem, until
from tests.speaking_job import SpeakingJob

UNKNOWN = "01JD0000000000000000000000"


@pytest.fixture(scope="module")
def alone(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """No API yet, and no worker: the tests speak for their jobs."""
    service = Service(tmp_path_factory.mktemp("streams"), redis_url=service_redis.url)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
async def client(service_redis: ChildRedis) -> AsyncIterator[Redis]:
    client = UrlSource(service_redis.url, kind="child").client()
    yield client
    await client.aclose()


@contextlib.asynccontextmanager
async def running_api(service: Service, **settings: str) -> AsyncIterator[GuardedProcess]:
    process = await asyncio.to_thread(lambda: service.start_api(**settings))
    try:
        yield process
    finally:
        await asyncio.to_thread(process.stop, 10)


@pytest.fixture
async def api(alone: Service) -> AsyncIterator[GuardedProcess]:
    async with running_api(alone) as process:
        yield process


@pytest.fixture
async def http(alone: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=alone.url, timeout=60) as client:
        yield client


def memory(process: GuardedProcess) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def watchers(http: httpx2.AsyncClient) -> int:
    response = await http.get("/readyz?verbose=1")
    return int(response.json()["watchers"]) if response.is_success else -1  # for a while it is too busy to be ready


async def until_watched(http: httpx2.AsyncClient, number: int) -> None:
    async with asyncio.timeout(60):
        while await watchers(http) != number:  # noqa: ASYNC110  # only the outside of a process shows it
            await asyncio.sleep(0.05)


class Crowd:
    """Raw sockets that ask for a job's stream."""

    def __init__(self, service: Service, job_id: str) -> None:
        self._port = service.port
        self._request = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        self.sockets: list[socket.socket] = []

    async def grow(self, number: int, *, receive_buffer: int | None = None) -> None:
        """That many more, all at once."""
        loop = asyncio.get_running_loop()

        async def one() -> None:
            opened = socket.socket()
            opened.setblocking(False)  # noqa: FBT003  # that is its form
            if receive_buffer is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sockets.append(opened)
            await loop.sock_connect(opened, ("127.0.0.1", self._port))
            await loop.sock_sendall(opened, self._request)

        await asyncio.gather(*[one() for _ in range(number)])

    async def read_out(self) -> list[bytes]:
        """What each has received up to its end."""
        loop = asyncio.get_running_loop()

        async def one(opened: socket.socket) -> bytes:
            received = b""
            while piece := await loop.sock_recv(opened, 65536):
                received += piece
                if received.endswith(b"0\r\n\r\n"):
                    break
            return received

        return await asyncio.gather(*[one(opened) for opened in self.sockets])

    def close(self) -> None:
        for opened in self.sockets:
            opened.close()


@pytest.fixture
def many_files() -> Iterator[int]:
    """How many sockets this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_sigterm_ends_every_stream_with_retry_within_a_second(
    alone: Service, api: GuardedProcess, http: httpx2.AsyncClient, client: Redis
) -> None:
    job = await SpeakingJob.start(client)
    crowd = Crowd(alone, job.id)
    try:
        await crowd.grow(500)
        await until_watched(http, 500)
        reading = asyncio.create_task(crowd.read_out())
        began = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        ends = await asyncio.wait_for(reading, 20)
        took = time.monotonic() - began
    finally:
        crowd.close()
    assert all(end.endswith(b"0\r\n\r\n") and end.count(b"retry: ") == 2 for end in ends)
    assert took < 1
    assert await asyncio.to_thread(api.wait, 10) in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in alone.log.read_text()


async def test_sigterm_closes_sockets_with_1012(alone: Service, api: GuardedProcess, client: Redis) -> None:
    job = await SpeakingJob.start(client)
    async with connect(f"ws://127.0.0.1:{alone.port}/jobs/{job.id}/ws") as connection:
        await connection.recv()
        os.kill(api.pid, signal.SIGTERM)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
        assert connection.close_code == 1012
    await asyncio.to_thread(api.wait, 10)


async def test_a_full_process_tells_new_streams_to_come_back(alone: Service, client: Redis) -> None:
    job, ended = await SpeakingJob.start(client), await SpeakingJob.start(client)
    await ended.finish()
    async with running_api(alone, JOBSTREAM_MAX_STREAMS="1"), httpx2.AsyncClient(base_url=alone.url) as http:
        async with http.stream("GET", f"/jobs/{job.id}/events") as response:
            stream = frames(response)
            first = await until(stream, "snapshot")
            for job_id in (job.id, ended.id):
                turned_away = await http.get(f"/jobs/{job_id}/events")
                assert turned_away.status_code == 200
                assert turned_away.headers["content-type"].startswith("text/event-stream")
                assert turned_away.text.startswith("retry: ")
                assert turned_away.text.count("\n\n") == 1
            lines = await http.get(f"/jobs/{job.id}/events", headers={"Accept": "application/x-ndjson"})
            assert json.loads(lines.text)["event"] == "retry"
            async with connect(f"ws://127.0.0.1:{alone.port}/jobs/{job.id}/ws") as connection:
                assert json.loads(await connection.recv())["event"] == "retry"
                with contextlib.suppress(ConnectionClosed):
                    await connection.recv()
                assert connection.close_code == 1012
            problem(await http.get(f"/jobs/{UNKNOWN}/events"), 404)
            assert first[-1].event == "snapshot"
        await until_watched(http, 0)
        async with events(http, {"id": job.id}) as stream:
            await until(stream, "snapshot")


async def test_clients_that_never_read_cost_little_and_delay_nobody(
    alone: Service, api: GuardedProcess, http: httpx2.AsyncClient, client: Redis
) -> None:
    """40 of them, and 40 MB said: each could be owed all of it."""
    job = await SpeakingJob.start(client)
    crowd = Crowd(alone, job.id)
    try:
        await crowd.grow(40, receive_buffer=4096)
        await until_watched(http, 40)
        before = memory(api)
        async with events(http, {"id": job.id}) as stream:
            await until(stream, "snapshot")
            text = "x" * 100_000
            for number in range(400):
                await job.chunk(f"{number} {text}")
                async with asyncio.timeout(10):
                    while (frame := await anext(stream)).event != "chunk":
                        pass
                assert frame.data.startswith(f"{number} ")
        assert memory(api) - before < 40_000_000
        assert (await http.get("/livez")).is_success
    finally:
        crowd.close()
    await until_watched(http, 0)


async def test_a_client_that_begins_to_read_late_gets_everything(
    alone: Service, api: GuardedProcess, http: httpx2.AsyncClient, client: Redis
) -> None:
    job = await SpeakingJob.start(client)
    crowd = Crowd(alone, job.id)
    try:
        await crowd.grow(1, receive_buffer=4096)
        await until_watched(http, 1)
        for number in range(300):
            await job.chunk(f"{number} " + "x" * 5_000)
        await job.finish()
        (received,) = await asyncio.wait_for(crowd.read_out(), 20)
    finally:
        crowd.close()
    assert [received.count(b'data: "%d xxx' % number) for number in range(300)] == [1] * 300
    assert received.count(b"event: done\n") == 1


async def test_a_burst_of_connections_is_served(
    alone: Service, api: GuardedProcess, http: httpx2.AsyncClient, client: Redis, many_files: int
) -> None:
    job = await SpeakingJob.start(client)
    number = min(10_000, many_files - 500)
    crowd = Crowd(alone, job.id)
    before = memory(api)
    try:
        growing = asyncio.create_task(crowd.grow(number))
        while not growing.done():
            assert (await http.get("/livez")).is_success
        await growing
        await until_watched(http, number)
        assert memory(api) - before < number * 60_000
        began = time.monotonic()
        await job.finish()
        ends = await asyncio.wait_for(crowd.read_out(), 60)
        assert all(end.count(b"event: done\n") == 1 and end.endswith(b"0\r\n\r\n") for end in ends)
        assert time.monotonic() - began < 30
    finally:
        crowd.close()
    assert (await http.get("/livez")).is_success
    await until_watched(http, 0)
    assert "Traceback" not in alone.log.read_text()
