"""Redis goes away, by SIGKILL or frozen: 503 and nothing accepted; when it is back, all goes on by itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import redis

from jobstream.embedded import ServerProgram
from jobstream.guard import GuardedProcess, start_guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import Frame, Puppet, done, events, last_id, problem, said, submit, until, versions
from tests.ports import free_port

A_FEW_SECONDS = 6.0


class Redis:
    """A server on a TCP port that can be killed, frozen and started again on its data."""

    def __init__(self, program: ServerProgram, directory: Path) -> None:
        self._program, self._directory, self._port = program, directory, free_port()
        self._process: GuardedProcess | None = None
        self.url = f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"port": self._port, "bind": "127.0.0.1", "dir": self._directory, "appendonly": "yes", "save": ""}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self._directory / "log").open("ab") as log:
            argv = [str(self._program.path), *arguments]
            self._process = start_guarded(argv, env=os.environ | {"LC_ALL": "C"}, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.BusyLoadingError):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal; return when a deadly one has worked."""
        assert self._process is not None
        os.kill(self._process.pid, number)
        if number is signal.SIGKILL:
            self._process.wait(10)

    def stop(self) -> None:
        """End it, frozen or not."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.stop(10)

    def keys(self) -> set[bytes]:
        """All keys."""
        with redis.Redis.from_url(self.url) as client:
            return set(client.scan_iter(count=1000))


@pytest.fixture(scope="module")
def server(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis of these tests' own."""
    server = Redis(server_program, tmp_path_factory.mktemp("redis-away"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def mortal(server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on that Redis."""
    service = Service(tmp_path_factory.mktemp("mortal"), redis_url=server.url)
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture
async def http(mortal: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=mortal.url, timeout=20) as client:
        yield client


@pytest.fixture(params=["killed", "frozen"])
async def away(request: pytest.FixtureRequest, server: Redis) -> AsyncIterator[None]:
    """Redis is away during the test."""
    ways = {"killed": (signal.SIGKILL, server.start), "frozen": (signal.SIGSTOP, lambda: server.signal(signal.SIGCONT))}
    number, back = ways[request.param]
    server.signal(number)
    yield
    await asyncio.to_thread(back)


REQUESTS = [
    ("POST", "/echo"),
    ("POST", "/measure"),
    ("GET", "/jobs"),
    ("GET", "/jobs/01JD0000000000000000000000"),
    ("GET", "/echo/01JD0000000000000000000000"),
    ("POST", "/jobs/01JD0000000000000000000000/cancel"),
    ("DELETE", "/jobs/01JD0000000000000000000000"),
    ("DELETE", "/echo/01JD0000000000000000000000"),
    ("GET", "/tasks"),
    ("GET", "/readyz"),
    ("GET", "/readyz?verbose"),
]


async def test_every_answer_is_503_within_seconds(http: httpx2.AsyncClient, away: None) -> None:
    async def ask(method: str, path: str) -> tuple[httpx2.Response, float]:
        began = time.monotonic()
        files = {"files": b"x" * 100_000} if path == "/measure" else None
        response = await http.request(method, path, files=files)
        return response, time.monotonic() - began

    for response, seconds in await asyncio.gather(*(ask(*request) for request in REQUESTS)):
        problem(response, 503, "redis-unavailable")
        assert int(response.headers["retry-after"]) >= 1
        assert seconds < A_FEW_SECONDS, response.url
    assert (await http.get("/livez")).status_code == 200
    document = await http.get("/openapi.json")  # what was known stays known
    assert document.status_code == 200
    assert "/echo" in document.json()["paths"]


@pytest.mark.parametrize("path", ["/jobs/01JD0000000000000000000000/events", "/events"])
async def test_who_wants_to_follow_is_told_to_come_back(http: httpx2.AsyncClient, away: None, path: str) -> None:
    """Any other status would end a browser's EventSource for good."""
    response = await http.get(path, headers={"Last-Event-ID": "0f1e2d3c-7"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert re.fullmatch(r"retry: \d+\n\n", response.text)
    lines = await http.get(path, headers={"Accept": "application/x-ndjson"})
    assert lines.json()["event"] == "retry"


async def test_all_goes_on_when_redis_is_back(http: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while (await http.get("/readyz")).status_code != 200:
            pass
        assert (await done(http, await submit(http, "echo", {"value": 1})))["result"] == 1


async def test_what_was_refused_is_not_there(http: httpx2.AsyncClient, mortal: Service, server: Redis) -> None:
    job = await submit(http, "echo", delay="600")
    before, stored = await asyncio.to_thread(server.keys), mortal.stored_files()
    server.signal(signal.SIGKILL)
    try:
        problem(await http.post("/echo", json={"value": 1}), 503)
        problem(await http.post("/measure", files={"files": b"x"}), 503)
    finally:
        await asyncio.to_thread(server.start)
    async with asyncio.timeout(10):
        while (await http.get("/readyz")).status_code != 200:
            pass
    assert (await http.get(job["links"]["self"])).json() == job  # what was accepted is
    workers = {b"jobstream:workers"}  # a heartbeat may have come in between
    assert await asyncio.to_thread(server.keys) <= before | workers
    # The upload goes when it is certain that no job needs it.
    await asyncio.to_thread(mortal.wait_until, lambda: mortal.stored_files() <= stored, "an upload is left")
    assert (await http.delete(job["links"]["self"])).status_code == 204


async def test_a_stream_is_resumed_across_a_restart_of_redis(
    http: httpx2.AsyncClient, server: Redis, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log before")
    seen: list[Frame] = []
    async with events(http, job) as stream:
        seen += await until(stream, "log")
        server.signal(signal.SIGKILL)
        puppet.do("log during")
        await asyncio.to_thread(server.start)
        puppet.do("log after", "end x")
        seen += [frame async for frame in stream if frame.event != "comment"]
    async with asyncio.timeout(20):
        while seen[-1].event != "done":  # the stream was cut: come back with the last id
            response = await http.get("/readyz")
            if response.status_code == 200:
                async with events(http, job, after=last_id(seen)) as stream:
                    seen += [frame async for frame in stream if frame.event != "comment"]
    assert said(seen) == ["before", "during", "after"]
    durable = [frame for frame in seen if frame.event != "snapshot"]
    assert versions(durable) == sorted(set(versions(durable)))


async def test_an_api_that_starts_before_redis_waits_for_it(server_program: ServerProgram, tmp_path: Path) -> None:
    late = Redis(server_program, tmp_path)
    service = Service(tmp_path, redis_url=late.url)
    try:
        await asyncio.to_thread(service.start_api)
        service.start_worker()
        async with httpx2.AsyncClient(base_url=service.url, timeout=20) as http:
            for _ in range(3):  # not even at once after the first is it "no such task"
                problem(await http.post("/echo"), 503, "redis-unavailable")
            await asyncio.to_thread(late.start)
            await asyncio.to_thread(service.wait_until, lambda: service.knows("echo"), "the service does not recover")
            assert (await done(http, await submit(http, "echo", {"value": 2})))["result"] == 2
    finally:
        await asyncio.to_thread(service.close)
        await asyncio.to_thread(late.stop)
