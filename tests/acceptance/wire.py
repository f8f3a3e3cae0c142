"""What tests say to the service and hear from it: jobs, puppets, event streams, raw requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

Json = dict[str, Any]

EVENT_ID = re.compile(r"[0-9a-f]{8}-[0-9]+\Z")
DURABLE = {"snapshot", "status", "log", "chunk", "done"}


class Frame(NamedTuple):
    """A block of an event stream."""

    event: str
    id: str | None
    data: Any


async def submit(http: httpx2.AsyncClient, task: str, input: Json | None = None, **options: str) -> Json:
    """Hand a job over; the Job."""
    response = await http.post(f"/{task}", json=input or {}, params=options)
    assert response.status_code in (202, 303), response.text
    job: Json = response.json()
    return job


async def done(http: httpx2.AsyncClient, job: Json) -> Json:
    """The Job at its end."""
    async with events(http, job) as stream:
        async for frame in stream:
            if frame.event == "done":
                last: Json = frame.data
                return last
    raise AssertionError("the stream ended without `done`")


async def started(http: httpx2.AsyncClient, job: Json) -> None:
    """Return when the job's task has said its first word."""
    async with events(http, job) as stream:
        async for frame in stream:
            if frame.event == "log":
                return
    raise AssertionError("the job has not begun")


def problem(response: httpx2.Response, status: int, code: str | None = None) -> Json:
    """The problem that a response is. Fails when it is none, or one that says too much."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/problem+json"
    members: Json = response.json()
    assert members["status"] == status
    assert {"type", "title", "detail", "instance", "code"} <= members.keys()
    assert isinstance(members["type"], str)
    assert members["type"]
    assert members["title"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    if code is not None:
        assert members["code"] == code
    return members


def pointers(members: Json) -> list[str]:
    """Where the problem sees errors."""
    return [error["pointer"] for error in members["errors"]]


@contextlib.asynccontextmanager
async def events(
    http: httpx2.AsyncClient, job: Json, *, after: str | None = None, params: dict[str, str] | None = None
) -> AsyncIterator[AsyncIterator[Frame]]:
    """The event stream of a job, from the beginning or behind an id."""
    headers = {"Last-Event-ID": after} if after else {}
    async with http.stream("GET", f"/jobs/{job['id']}/events", headers=headers, params=params) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        yield frames(response)


async def frames(response: httpx2.Response) -> AsyncIterator[Frame]:
    """Blocks as they come. `retry:` alone is a frame named `retry`, a comment one named `comment`.

    Stricter than a client needs to be: lines end with a line feed, as the service writes them.
    """
    waiting = b""
    async for piece in response.aiter_bytes():
        *blocks, waiting = (waiting + piece).split(b"\n\n")
        for block in blocks:
            yield _frame(block.decode().split("\n"))
    assert not waiting, "the stream was cut within a frame"


async def all_frames(http: httpx2.AsyncClient, job: Json, *, after: str | None = None) -> list[Frame]:
    """The stream to its end, without comments."""
    async with events(http, job, after=after) as stream:
        return [frame async for frame in stream if frame.event != "comment"]


async def until(stream: AsyncIterator[Frame], event: str) -> list[Frame]:
    """Read on up to the first frame of that kind; all frames but comments."""
    seen: list[Frame] = []
    async for frame in stream:
        if frame.event != "comment":
            seen.append(frame)
        if frame.event == event:
            return seen
    raise AssertionError(f"the stream ended without {event!r}: {seen}")


def last_id(seen: Iterable[Frame]) -> str:
    """The id to resume from."""
    return [frame.id for frame in seen if frame.id is not None][-1]


def versions(seen: Iterable[Frame]) -> list[int]:
    """The versions of the frames that have an id."""
    return [int(frame.id.partition("-")[2]) for frame in seen if frame.id is not None]


def said(seen: Iterable[Frame]) -> list[Any]:
    """Log messages and chunks, in order."""
    return [
        frame.data["message"] if frame.event == "log" else frame.data
        for frame in seen
        if frame.event in ("log", "chunk")
    ]


def _frame(lines: list[str]) -> Frame:
    if all(line.startswith(":") for line in lines):
        return Frame("comment", None, lines[0][1:].strip())
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines), f"a field comes twice: {lines}"
    if "retry" in fields:
        assert fields.keys() == {"retry"}
        return Frame("retry", None, int(fields["retry"]))
    assert fields.keys() <= {"id", "event", "data"}
    return Frame(fields["event"], fields.get("id"), json.loads(fields["data"]))


class Puppet:
    """A job that does what it is told, when it is told."""

    def __init__(self, pipe: Path) -> None:
        os.mkfifo(pipe)
        self._strings = os.open(pipe, os.O_RDWR)  # both ends: opening one would wait for the other
        self.input = {"strings": str(pipe)}

    def do(self, *orders: str) -> None:
        """`log TEXT`, `chunk JSON`, `progress CURRENT TOTAL MESSAGE`, `fail DETAIL`, `end RESULT`."""
        os.write(self._strings, "".join(order + "\n" for order in orders).encode())

    def close(self) -> None:
        """Let go; a job that still waits ends."""
        os.close(self._strings)


@contextlib.contextmanager
def puppet(directory: Path, name: str = "pipe") -> Iterator[Puppet]:
    """A puppet; submit its `input` to the task `puppet`."""
    held = Puppet(directory / name)
    try:
        yield held
    finally:
        held.do("end let go")
        held.close()


async def raw(url: str, request: bytes, *, half_close: bool = False) -> httpx2.Response:
    """Send bytes that no client would send; the answer, as far as there is one."""
    target = httpx2.URL(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        async with asyncio.timeout(10):
            writer.write(request)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if half_close:
                writer.write_eof()
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").rstrip().split("\r\n")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            length = {name.lower(): value for name, value in headers}.get("content-length")
            body = await (reader.readexactly(int(length)) if length else reader.read())
    finally:
        writer.close()
    return httpx2.Response(int(status.split(" ")[1]), headers=headers, content=body)
