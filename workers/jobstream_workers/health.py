"""Health: how a worker is, and `/livez`, `/readyz` and `/metrics` on a port of its own.

The server has a thread and an event loop of its own, so that a job that blocks the worker's loop does not silence it.

*Live* is a worker that a restart would not help. It is dead when

- its event loop has not turned for longer than a task on the loop may take (the longest timeout and 10 s, a minute at
  least): nothing can stop what blocks it then; or
- its claim loop has said nothing, neither that it reached Redis nor that Redis is away, for a minute: it is stuck, or
  it fails for a reason that does not pass; or
- as many coroutines as it has slots did not stop when they were told to, and run on without their jobs: nothing else
  ends them; or
- it is deaf: for a minute Redis has answered each new connection of the server's thread, while the claim loop could not
  reach it.

That Redis is away, full or read-only, for however long, does not make it dead, and a shutdown that takes long does not.
Time is counted in seconds that the two loops have really had, each with a pulse of one second. So a machine that
slept, or a process that was stopped for a while, is not taken for ill when it wakes up.

*Ready* is a worker that claims: announced, not shutting down, and its claim loop has reached Redis in the last seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from redis.exceptions import ResponseError

from jobstream.errors import ConfigurationError
from jobstream.metrics import MEDIA_TYPE
from jobstream.redis import RedisSource, is_unavailable
from jobstream.task import Task
from jobstream_workers.meter import Meter

logger = logging.getLogger("jobstream.health")

ILL_SECONDS = 60
READY_SECONDS = 5

REQUEST_BYTES = 8192
REQUEST_SECONDS = 5.0
CONNECTIONS = 50


class Pulse:
    """What the two loops of a worker last noticed. Plain numbers: each is written by one thread, or does not mind."""

    def __init__(self, tasks: Iterable[Task], *, poll_seconds: float = 0.0, slots: int = 1) -> None:
        longest = max((task.timeout for task in tasks if task.executor == "loop"), default=0.0)
        self._may_block = max(longest + 10, ILL_SECONDS)
        self._ill = ILL_SECONDS + poll_seconds
        self._late = READY_SECONDS + poll_seconds
        self._slots = slots
        self._silent = 0
        self._speechless = 0
        self._unreached = 0
        self._answered = 0
        self._refused = False
        self.announced = False
        """The first heartbeat was written."""
        self.left_behind = 0
        """Coroutines that did not stop when they were told to."""
        self.stopping = False
        """Nothing more is claimed."""

    async def beat(self) -> None:
        """Note each second that the event loop turns; for ever."""
        while True:
            self.turned()
            await asyncio.sleep(1)

    def turned(self) -> None:
        """The worker's event loop has had another second."""
        self._silent = 0
        self._speechless += 1
        self._unreached += 1

    def reached(self) -> None:
        """The claim loop has reached Redis."""
        self._speechless = self._unreached = self._answered = 0
        self._refused = False

    def failed(self, error: BaseException) -> None:
        """The claim loop has failed; an error that does not mean that Redis is away counts as nothing said."""
        if is_unavailable(error):
            self._speechless = 0
            self._refused = isinstance(error, ResponseError)  # full, or read-only: it answers, and that is no help

    def watched(self, *, redis_answers: bool) -> None:
        """The server's thread has had another second, and asked Redis when it was `in_doubt`."""
        self._silent += 1
        self._answered = self._answered + 1 if redis_answers else 0

    @property
    def unreached(self) -> int:
        """Seconds since the claim loop last reached Redis; 0 while nothing more is claimed."""
        return 0 if self.stopping else self._unreached

    @property
    def in_doubt(self) -> bool:
        """Whether to ask Redis on another connection: the claim loop cannot reach it."""
        return self._unreached > self._late and not self._refused and not self.stopping

    @property
    def illness(self) -> str | None:
        """Why a restart would help; None when it would not."""
        if self._silent > self._may_block:
            return f"the event loop has not turned for {self._silent} s"
        if self.stopping:
            return None
        if self._speechless > self._ill:
            return f"the claim loop has not been heard of for {self._speechless} s"
        if self._answered > self._ill:
            return f"the claim loop has not reached Redis for {self._unreached} s, although Redis answers"
        if self.left_behind >= self._slots:
            return f"{self.left_behind} coroutines did not stop when they were told to, and run on"
        return None

    @property
    def hindrance(self) -> str | None:
        """Why nothing is claimed; None when jobs are."""
        if self.stopping:
            return "shutting down"
        if not self.announced:
            return "starting"
        if self._silent > READY_SECONDS:
            return f"the event loop has not turned for {self._silent} s"
        if self._unreached > self._late:
            return f"Redis was not reached for {self._unreached} s"
        return None


class HealthServer:
    """Answers `/livez`, `/readyz` and `/metrics`, in a thread, while the `with` block runs.

    `port` 0 takes a free one: see `address`. Raises ConfigurationError on entry when it cannot listen.
    """

    def __init__(self, pulse: Pulse, meter: Meter, source: RedisSource, *, host: str, port: int) -> None:
        self._pulse = pulse
        self._meter = meter
        self._source = source
        self._host, self._port = host, port
        self._listening: Future[tuple[str, int]] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._open = 0
        self._thread = threading.Thread(target=self._run, name="jobstream-health", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port where it listens."""
        return self._listening.result()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            host, port = self.address
        except OSError as error:
            raise ConfigurationError(
                f"JOBSTREAM_WORKER_PORT: cannot listen on {self._host} port {self._port}: {error.strerror}"
            ) from error
        logger.info("health and metrics at %s port %d", host, port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._over is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(1)  # it may wait for Redis

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._listening.done():
                logger.exception("the health server has ended")
            else:
                self._listening.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._answer, self._host, self._port, limit=REQUEST_BYTES)
        self._listening.set_result(server.sockets[0].getsockname()[:2])
        watcher = asyncio.create_task(self._watch())
        await self._over.wait()
        watcher.cancel()
        server.close()  # and whoever is still connected is cut when this loop ends

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            answers = self._pulse.in_doubt and await asyncio.to_thread(self._redis_answers)
            self._pulse.watched(redis_answers=answers)

    def _redis_answers(self) -> bool:
        try:
            with self._source.sync_client() as client:
                return bool(client.ping())
        except Exception:
            return False

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(self._response(await _request_line(reader)))
                writer.write_eof()
                while await reader.read(REQUEST_BYTES):  # closed with something unread, the answer would be lost
                    pass
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # too slow, or gone
        finally:
            self._open -= 1
            writer.transport.abort()

    def _response(self, line: bytes | None) -> bytes:
        request = re.match(rb"([A-Z]+) ([^ ?]+)(?:\?[^ ]*)? HTTP/1\.[01]\Z", line or b"")
        if request is None:
            return _message("400 Bad Request", {"status": "not a request"})
        method, path = request[1], request[2]
        if path not in (b"/livez", b"/readyz", b"/metrics"):
            return _message("404 Not Found", {"status": "there is /livez, /readyz and /metrics"})
        if method not in (b"GET", b"HEAD"):
            return _message("405 Method Not Allowed", {"status": "GET or HEAD"}, "Allow: GET, HEAD\r\n")
        if path == b"/metrics":
            answer = _message("200 OK", self._meter.exposition())
        else:
            reason = self._pulse.illness if path == b"/livez" else self._pulse.hindrance
            answer = _message("503 Service Unavailable" if reason else "200 OK", {"status": reason or "ok"})
        return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == b"HEAD" else answer


async def _request_line(reader: asyncio.StreamReader) -> bytes | None:
    """The first line, once the whole head is there; None for a head that is too long."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return None
    return head.partition(b"\r\n")[0]


def _message(status: str, body: bytes | dict[str, str], headers: str = "") -> bytes:
    """JSON for a dict, Prometheus's text for bytes."""
    media_type = "application/json"
    if isinstance(body, bytes):
        media_type = MEDIA_TYPE
    else:
        body = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{headers}Connection: close\r\n\r\n"
    )
    return head.encode() + body
