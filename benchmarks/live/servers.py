"""The ways to serve the same event streams: `python -m benchmarks.live.servers KIND REDIS_URL PORT`.

All but jobstream relay what is published for the job, and nothing else: no snapshot, no log, no resumption, no bounds.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import redis.asyncio as redis
import uvloop

CHANNEL = "jobstream:events:"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
FORMAT = "id: {}\nevent: {}\ndata: {}\n\n"


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


class Relay:
    """One subscription for all jobs, and whom to tell."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.queues: defaultdict[str, set[asyncio.Queue[tuple[str, str, str]]]] = defaultdict(set)

    async def run(self) -> None:
        client = redis.Redis.from_url(self._url)
        async with client.pubsub() as pubsub:
            await pubsub.psubscribe(CHANNEL + "*")
            async for message in pubsub.listen():
                if message["type"] == "pmessage":
                    version, kind, _, data = message["data"].decode().split(" ", 3)
                    job_id = message["channel"].decode().removeprefix(CHANNEL)
                    for queue in self.queues.get(job_id, ()):
                        queue.put_nowait((version, kind, data))

    async def follow(self, job_id: str) -> AsyncIterator[tuple[str, str, str]]:
        queue: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self.queues[job_id].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.queues[job_id].discard(queue)


def floor(url: str, port: int) -> None:
    """A bare asyncio socket server: bytes made once, one write per client."""
    watching: defaultdict[bytes, set[asyncio.Transport]] = defaultdict(set)

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.job = b""

        def data_received(self, data: bytes) -> None:
            self.job = data.split(b"/", 3)[2]
            watching[self.job].add(self.transport)
            self.transport.write(HEAD)

        def connection_lost(self, exc: Exception | None) -> None:
            watching[self.job].discard(self.transport)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Client, sock=_listener(port), backlog=2048)
        client = redis.Redis.from_url(url)
        async with server, client.pubsub() as pubsub:
            await pubsub.psubscribe(CHANNEL + "*")
            async for message in pubsub.listen():
                if message["type"] == "pmessage":
                    version, kind, _, data = message["data"].split(b" ", 3)
                    body = b"id: %b\nevent: %b\ndata: %b\n\n" % (version, kind, data)
                    chunk = b"%x\r\n%b\r\n" % (len(body), body)
                    for transport in watching[message["channel"].removeprefix(CHANNEL.encode())]:
                        transport.write(chunk)

    uvloop.run(run())


def _serve(app: object, port: int) -> None:
    import uvicorn

    config = uvicorn.Config(app, access_log=False, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[_listener(port)])


def native(url: str, port: int) -> None:
    """FastAPI's own event streams, and a queue per client."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    relay = Relay(url)
    app = _with_relay(FastAPI, relay)

    @app.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
    async def events(job_id: str) -> AsyncIterator[ServerSentEvent]:
        async for version, kind, data in relay.follow(job_id):
            yield ServerSentEvent(raw_data=data, event=kind, id=version)

    _serve(app, port)


def sse_starlette(url: str, port: int) -> None:
    """sse-starlette on FastAPI, and a queue per client."""
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse, ServerSentEvent

    relay = Relay(url)
    app = _with_relay(FastAPI, relay)

    async def follow(job_id: str) -> AsyncIterator[ServerSentEvent]:
        async for version, kind, data in relay.follow(job_id):
            yield ServerSentEvent(data=data, event=kind, id=version)

    @app.get("/jobs/{job_id}/events")
    async def events(job_id: str) -> EventSourceResponse:
        return EventSourceResponse(follow(job_id))

    _serve(app, port)


def per_client(url: str, port: int) -> None:
    """The tutorials' way: a Redis subscription for each client, and a StreamingResponse."""
    from fastapi import FastAPI
    from starlette.responses import StreamingResponse

    app = FastAPI()
    client = redis.Redis.from_url(url, max_connections=20_000)

    async def follow(job_id: str) -> AsyncIterator[str]:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL + job_id)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    version, kind, _, data = message["data"].decode().split(" ", 3)
                    yield FORMAT.format(version, kind, data)

    @app.get("/jobs/{job_id}/events")
    async def events(job_id: str) -> StreamingResponse:
        return StreamingResponse(follow(job_id), media_type="text/event-stream")

    _serve(app, port)


def _with_relay(make: type, relay: Relay) -> object:
    import contextlib

    @contextlib.asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        task = asyncio.create_task(relay.run())
        yield
        task.cancel()

    return make(lifespan=lifespan)


KINDS = {"floor": floor, "native": native, "sse-starlette": sse_starlette, "per-client": per_client}

if __name__ == "__main__":
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    KINDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
