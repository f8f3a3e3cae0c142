"""Frames as Server-Sent Events, and a response that lets go of its frames however it ends."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.types import Message

from jobstream.errors import JobGone, JobNotFound
from jobstream_api.live.follow import GOODBYE, OPENED, PING, Frame
from jobstream_api.live.sse import EventStream, encode, event_stream

LOG = Frame("log", "0123abcd-3", 0, b'{"message":"a"}')
LOG_BYTES = b'id: 0123abcd-3\nevent: log\ndata: {"message":"a"}\n\n'
SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Frames:
    """A generator of frames that notes that it was closed; after its frames it waits, raises or ends."""

    def __init__(self, *frames: Frame, then: Exception | None = None, waits: bool = False) -> None:
        self._frames = frames
        self._then = then
        self._waits = waits
        self.waiting = asyncio.Event()
        self.closed = False

    async def __call__(self) -> AsyncGenerator[Frame, None]:
        try:
            for frame in self._frames:
                yield frame
            if self._waits:
                self.waiting.set()
                await asyncio.Event().wait()
            if self._then is not None:
                raise self._then
        finally:
            self.closed = True


class Client:
    """The other side of an ASGI response: what it got, and how it goes away."""

    def __init__(self) -> None:
        self.started: Message | None = None
        self.body = b""
        self.ended = False
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.started = message
        else:
            self.body += message["body"]
            self.ended = not message["more_body"]


async def sent(frames: Frames) -> Client:
    client = Client()
    response = await event_stream(frames())
    assert response is not None
    await response(SCOPE, client.receive, client.send)
    return client


def test_a_durable_frame_has_an_id() -> None:
    assert encode(LOG) == LOG_BYTES


def test_a_frame_that_is_state_has_none() -> None:
    assert encode(Frame("progress", None, 0, b'{"current":1}')) == b'event: progress\ndata: {"current":1}\n\n'


def test_a_ping_is_a_comment() -> None:
    assert encode(PING) == b": ping\n\n"


def test_a_goodbye_spreads_those_who_come_back() -> None:
    matches = [re.fullmatch(rb"retry: (\d+)\n\n", encode(GOODBYE)) for _ in range(200)]
    pauses = [int(match[1]) for match in matches if match]
    assert len(pauses) == 200
    assert min(pauses) >= 1000
    assert max(pauses) < 3000
    assert len(set(pauses)) > 50


async def test_a_stream_says_retry_once_then_the_frames_and_ends_with_them() -> None:
    client = await sent(Frames(OPENED, LOG, PING))
    assert client.body == b"retry: 2000\n\n" + LOG_BYTES + b": ping\n\n"
    assert client.ended
    assert client.started is not None
    assert client.started["status"] == 200
    headers = dict(client.started["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers


async def test_no_frame_at_all_is_no_stream() -> None:
    assert await event_stream(Frames()()) is None


@pytest.mark.parametrize("error", [JobNotFound("x"), JobGone("x"), TimeoutError(), RedisConnectionError()])
async def test_what_is_wrong_at_first_is_raised_before_the_response(error: Exception) -> None:
    frames = Frames(then=error)
    with pytest.raises(type(error)):
        await event_stream(frames())
    assert frames.closed


@pytest.mark.parametrize(
    ("error", "mistakes"), [(JobGone("purged"), 0), (RedisConnectionError("away"), 0), (ZeroDivisionError("ours"), 1)]
)
async def test_what_goes_wrong_later_ends_the_stream_cleanly(
    error: Exception, mistakes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        client = await sent(Frames(OPENED, LOG, then=error))
    assert client.body.endswith(LOG_BYTES)
    assert client.ended
    assert len(caplog.records) == mistakes


async def test_a_client_that_goes_while_nothing_happens_closes_the_frames() -> None:
    frames, client = Frames(OPENED, LOG, waits=True), Client()
    response = await event_stream(frames())
    assert response is not None
    serving = asyncio.create_task(response(SCOPE, client.receive, client.send))
    await frames.waiting.wait()
    client.gone.set()
    await serving
    assert frames.closed


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_client_that_goes_without_reading_closes_the_frames(spec_version: str) -> None:
    frames, client = Frames(OPENED, LOG, LOG, waits=True), Client()
    generator = frames()
    opened = await event_stream(generator)
    assert isinstance(opened, EventStream)
    client.reads.clear()  # the first write never ends
    serving = asyncio.create_task(
        opened({"type": "http", "asgi": {"spec_version": spec_version}}, client.receive, client.send)
    )
    await asyncio.sleep(0)
    if spec_version == "2.3":
        client.gone.set()
    else:
        serving.cancel()  # such a server ends the task
    await asyncio.wait({serving})
    assert frames.closed
