"""A service that answers from a script: each request takes the next answer of its route, the last one again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self
from urllib.parse import parse_qs, urlsplit

from pydantic import JsonValue


@dataclass(frozen=True)
class Request:
    """What a client has sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The bytes of a response; the connection is closed behind them, or held open until the stub ends."""

    data: bytes
    hold: bool = False
    ping: float | None = None
    """Seconds between two comments that are sent while it is held open."""


def answer(status: int, body: JsonValue = None, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON response (problem+json from 400 on), without a body for None."""
    content = b"" if body is None else json.dumps(body).encode()
    kind = "application/problem+json" if status >= 400 else "application/json"
    lines = {"Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    return Answer(_head(status, lines) + content)


def sse(*frames: str, cut: bool = False, hold: bool = False, ping: float | None = None) -> Answer:
    """An event stream of these frames: ended properly, cut in the middle of a response, left open, or pinging on."""
    lines = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", "Connection": "close"}
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in (frame.encode() for frame in frames))
    open_ended = cut or hold or ping is not None
    return Answer(_head(200, lines) + chunks + (b"" if open_ended else b"0\r\n\r\n"), hold, ping)


def frame(event: str, data: JsonValue, event_id: str = "") -> str:
    """One frame of an event stream."""
    return (f"id: {event_id}\n" if event_id else "") + f"event: {event}\ndata: {json.dumps(data)}\n\n"


def job(job_id: str = "j1", status: str = "running", **fields: JsonValue) -> dict[str, JsonValue]:
    """A job as the wire shows it; name only the fields that matter."""
    task = fields.get("task", "words")
    return {
        "id": job_id,
        "task": task,
        "queue": "default",
        "status": status,
        "done": status in ("succeeded", "failed", "cancelled"),
        "version": 1,
        "progress": None,
        "attempt": 1,
        "max_attempts": 1,
        "result": None,
        "error": None,
        "created_at": "2026-11-21T06:40:00.000Z",
        "run_at": None,
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "worker": None,
        "tags": [],
        "owner": None,
        "parent": None,
        "links": {"self": f"/jobs/{job_id}", "result": f"/{task}/{job_id}", "events": f"/jobs/{job_id}/events"},
        **fields,
    }


def error(detail: str = "it broke", status: int = 500) -> dict[str, JsonValue]:
    """The `error` of a failed job."""
    return {
        "type": "about:blank",
        "title": "The task failed",
        "status": status,
        "detail": detail,
        "code": "task-crashed",
        "retryable": False,
        "attempt": 1,
    }


class StubService:
    """A server on a loopback port, in a thread of its own (`with`)."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._asked, self._left = threading.Event(), threading.Event()
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Script a route."""
        self._answers[method, path] = list(answers)

    def seen(self, method: str, path: str) -> list[Request]:
        """The requests that a route has got so far."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def wait_for_request(self) -> bool:
        """True as soon as there has been a request, False after a while."""
        return self._asked.wait(20)

    def wait_for_leaver(self) -> bool:
        """True as soon as a client has left an answer that is held open, False after a while."""
        return self._left.wait(20)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self) -> None:
        self._stopping = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())

    async def _stop(self) -> None:
        self._stopping.set()
        self._server.close()
        await asyncio.gather(*self._open)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._open.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        self.requests.append(request)
        self._asked.set()
        script = self._answers.get((request.method, request.path))
        if script is None:
            reply = answer(404, {"title": "There is no job of that id", "status": 404, "code": "job-not-found"})
        else:
            reply = script.pop(0) if len(script) > 1 else script[0]
        writer.write(reply.data)
        await writer.drain()
        if reply.hold or reply.ping is not None:
            await self._hold(reader, writer, reply.ping)

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ping: float | None) -> None:
        """Until the client leaves or the stub ends."""
        gone, stopping = asyncio.create_task(reader.read()), asyncio.create_task(self._stopping.wait())
        while not gone.done() and not stopping.done():
            if ping is not None:
                writer.write(b"8\r\n: ping\n\n\r\n")
            await asyncio.wait({gone, stopping}, timeout=ping, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self._left.set()
        for task in (gone, stopping):
            task.cancel()
        await asyncio.gather(gone, stopping, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return Request(method, parts.path, parse_qs(parts.query), headers, body)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()
