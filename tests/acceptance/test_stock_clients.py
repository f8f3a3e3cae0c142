"""Clients that know nothing of us follow the stream as it is: curl, and httpx with httpx-sse."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import httpx2
import pytest
from httpx_sse import EventSource, ServerSentEvent, aconnect_sse, connect_sse

from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, all_frames, submit

LOOPBACK = {"all://127.0.0.1": None}
"""A shell's proxy is not meant for this machine."""


@pytest.fixture
def curl() -> str:
    """The program; without one the test is skipped, or fails where nothing may be."""
    program = shutil.which("curl")
    if program is not None:
        return program
    if os.environ.get("CI"):
        pytest.fail("no curl on PATH")
    pytest.skip("no curl on PATH")


async def whole(http: httpx2.AsyncClient, job: dict[str, object]) -> list[tuple[str, str, object]]:
    """Id, event and data of all that has an id, as a strict reader of our own sees it."""
    return [(frame.id, frame.event, frame.data) for frame in await all_frames(http, job) if frame.id is not None]


def read(frames: list[ServerSentEvent]) -> list[tuple[str, str, object]]:
    """The same, as httpx-sse gives it. A block of `retry` alone is an event without data there."""
    return [
        (frame.id, frame.event, json.loads(frame.data)) for frame in frames if frame.data and frame.event != "progress"
    ]


def talk(puppet: Puppet) -> None:
    puppet.do("log one \u2028 line", "progress 1 2 half", 'chunk {"part": "é"}', "log three", "end over")


async def test_httpx_sse_follows_a_job_while_it_runs(
    service: Service, http: httpx2.AsyncClient, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with (
        httpx.AsyncClient(base_url=service.url, mounts=LOOPBACK) as stock,
        aconnect_sse(stock, "GET", job["links"]["events"]) as source,
    ):
        frames = source.aiter_sse()
        seen = [await anext(frames), await anext(frames)]
        talk(puppet)
        seen += [frame async for frame in frames]
    assert seen[0].retry == 2000
    assert next(frame.event for frame in seen if frame.data) == "snapshot"
    assert read(seen)[1:] == (await whole(http, job))[1:]  # the snapshots are of different moments
    assert seen[-1].event == "done"


async def test_httpx_sse_resumes_by_the_last_id(service: Service, http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    talk(puppet)

    def follow() -> list[ServerSentEvent]:
        """As its users write it: a loop around a connection that is left after each event."""
        seen: list[ServerSentEvent] = []
        with httpx.Client(base_url=service.url, mounts=LOOPBACK) as stock:
            while True:
                headers = {"Last-Event-ID": seen[-1].id} if seen else {}
                with connect_sse(stock, "GET", job["links"]["events"], headers=headers) as source:
                    if source.response.status_code == 204:
                        return seen
                    seen.append(_first_with_id(source, after=seen[-1].id if seen else ""))

    seen = await asyncio.to_thread(follow)
    assert read(seen)[1:] == (await whole(http, job))[1:]
    assert seen[-1].event == "done"


def _first_with_id(source: EventSource, *, after: str) -> ServerSentEvent:
    return next(frame for frame in source.iter_sse() if frame.data and frame.id not in ("", after))


@asynccontextmanager
async def running(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_curl_shows_each_event_as_it_happens_and_ends_with_the_job(
    service: Service, http: httpx2.AsyncClient, puppet: Puppet, curl: str
) -> None:
    job = await submit(http, "puppet", puppet.input)
    url = service.url + job["links"]["events"]
    async with running(curl, "--silent", "--fail", "--noproxy", "*", "-N", url) as process:
        assert process.stdout is not None
        for number in range(3):
            puppet.do(f"log {number}")
            said = b""
            while f'"message":"{number}"'.encode() not in said:  # nothing was held back
                said = await asyncio.wait_for(process.stdout.readline(), 20)
                assert said
        puppet.do("end over")
        rest = await asyncio.wait_for(process.stdout.read(), 20)
        assert await process.wait() == 0
    assert b"event: done\n" in rest
    assert rest.endswith(b"\n\n")


async def test_curl_resumes_by_a_header_or_in_the_url(
    service: Service, http: httpx2.AsyncClient, puppet: Puppet, curl: str
) -> None:
    job = await submit(http, "puppet", puppet.input)
    talk(puppet)
    ids = [event_id for event_id, _, _ in await whole(http, job)]
    url = service.url + job["links"]["events"]
    for arguments in (["-H", f"Last-Event-ID: {ids[2]}", url], [f"{url}?last_event_id={ids[2]}"]):
        async with running(curl, "--silent", "--fail", "--noproxy", "*", "-N", *arguments) as process:
            assert process.stdout is not None
            said = (await asyncio.wait_for(process.stdout.read(), 20)).decode()
        assert [line.removeprefix("id: ") for line in said.splitlines() if line.startswith("id: ")] == ids[3:]
