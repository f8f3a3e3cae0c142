"""The API process may end at any time: by SIGKILL nothing is lost, by SIGTERM streams are told to go elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess
from tests.acceptance.service import Service
from tests.acceptance.wire import Frame, Puppet, events, frames, last_id, said, submit, until, versions


@pytest.fixture(scope="module")
def lonely(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker, and no API yet."""
    service = Service(tmp_path_factory.mktemp("restart"), redis_url=service_redis.url)
    service.start_worker()
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
async def api(lonely: Service) -> AsyncIterator[GuardedProcess]:
    """An API process, ended at the end of the test at the latest."""
    process = await asyncio.to_thread(lonely.start_api)
    await asyncio.to_thread(lonely.wait_until, lambda: lonely.knows("puppet"), "the worker has not announced its tasks")
    yield process
    await asyncio.to_thread(process.stop, 10)


@pytest.fixture
async def http(lonely: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=lonely.url, timeout=20) as client:
        yield client


async def test_a_stream_goes_on_behind_a_killed_api(
    lonely: Service, api: GuardedProcess, http: httpx2.AsyncClient, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log before")
    seen: list[Frame] = []

    async def watch_and_kill() -> None:
        async with events(http, job) as stream:
            async for frame in stream:
                seen.append(frame)
                if frame.event == "log":
                    os.kill(api.pid, signal.SIGKILL)

    with pytest.raises(httpx2.TransportError):
        await watch_and_kill()
    await asyncio.to_thread(api.wait, 10)
    puppet.do("log while nobody listened")
    again = await asyncio.to_thread(lonely.start_api)
    try:
        async with events(http, job, after=last_id(seen)) as stream:
            puppet.do("log after", "end x")
            seen += await until(stream, "done")
    finally:
        await asyncio.to_thread(again.stop, 10)
    assert said(seen) == ["before", "while nobody listened", "after"]
    assert versions(seen) == sorted(set(versions(seen)))
    assert [frame.event for frame in seen].count("snapshot") == 1


async def test_sigterm_ends_open_streams_with_retry_within_two_seconds(
    api: GuardedProcess, http: httpx2.AsyncClient, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with http.stream("GET", job["links"]["events"]) as response:
        stream = frames(response)
        await until(stream, "snapshot")
        began = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        rest = [frame async for frame in stream if frame.event != "comment"]
        # `frames` has read to a clean end: the last chunk was sent, the connection was not just dropped.
    code = await asyncio.to_thread(api.wait, 10)
    assert time.monotonic() - began < 2
    assert rest[-1].event == "retry"
    assert 0 < rest[-1].data < 10_000  # spread, so that not all of them come back at once
    assert "done" not in [frame.event for frame in rest]
    assert code in (0, 128 + signal.SIGTERM)


async def test_sigterm_without_streams_ends_at_once(api: GuardedProcess, http: httpx2.AsyncClient) -> None:
    assert (await http.get("/livez")).is_success  # and the connection stays open
    began = time.monotonic()
    os.kill(api.pid, signal.SIGTERM)
    await asyncio.to_thread(api.wait, 10)
    assert time.monotonic() - began < 2


async def test_sigterm_costs_no_request_on_connections_that_are_kept_alive(
    api: GuardedProcess, lonely: Service
) -> None:
    answers, busy = 0, asyncio.Event()

    async def ask_until_told_to_go() -> None:
        nonlocal answers
        reader, writer = await asyncio.open_connection("127.0.0.1", lonely.port)
        head = b""
        while b"connection: close" not in head.lower():
            writer.write(b"GET /livez HTTP/1.1\r\nHost: api\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")  # raises when the connection was closed without an answer
            await reader.readexactly(len(b'{"status":"ok"}'))
            answers += 1
            if answers == 300:
                busy.set()
        writer.close()

    async with asyncio.timeout(20), asyncio.TaskGroup() as clients:
        for _ in range(30):
            clients.create_task(ask_until_told_to_go())
        await busy.wait()
        os.kill(api.pid, signal.SIGTERM)
    assert await asyncio.to_thread(api.wait, 10) in (0, 128 + signal.SIGTERM)
