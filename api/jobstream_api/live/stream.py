"""An event stream: an ASGI response that writes a follower's frames, and the table of all that are open.

Two ways to write, one object. Behind our own server (`live/edge.py`) frames are *pushed*: the hub's call of `ready`
ends in the server's `send`, which only puts bytes into the socket's buffer: a delivery wakes no task. When the socket
is full, `send` waits: then a task takes that one write over, and what comes meanwhile waits in the follower. In any
other ASGI server, or behind middleware, `send` may do anything, so the request's own task writes.

Either way at most one write is under way, frames are taken from the follower only for a write, and a write that is not
done in `WRITE_SECONDS` ends the stream: its client comes back with its last id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from jobstream.cancellation import cancel
from jobstream.errors import JobstreamError
from jobstream.redis import is_unavailable
from jobstream_api.live.follow import goodbye
from jobstream_api.live.frame import Frame, WireFormat

logger = logging.getLogger("jobstream.stream")

EDGE = "jobstream.edge"
"""The ASGI extension by which a stream finds the edge that it may push through."""

WRITE_SECONDS = 30.0
"""How long one write to a client may take."""

SLICE = 64
"""Streams pinged in one go."""

SPOKES = 15
"""Turns of the timer in a heartbeat: a stream that is silent is pinged one turn before it ends."""


class Streams:
    """All open streams of the process: how many there may be, and one timer for all their pings.

    The timer turns a wheel: each stream is at the spoke that comes round when it would have to be pinged if it wrote
    nothing until then, and is looked at only there. So a stream costs one look in a heartbeat, and no ping while it
    has something to say.
    """

    def __init__(self, *, most: int, heartbeat: float) -> None:
        self._most = most
        self._heartbeat = heartbeat
        self._open: dict[Pinged, int] = {}
        self._wheel: list[dict[Pinged, None]] = [{} for _ in range(SPOKES)]
        self._at = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """True when there may be no more."""
        return len(self._open) >= self._most

    @property
    def overfull(self) -> bool:
        """True when there are more than there may be."""
        return len(self._open) > self._most

    def add(self, stream: Pinged) -> None:
        """It is pinged until `discard`."""
        self._put(stream, SPOKES - 1)

    def discard(self, stream: Pinged) -> None:
        """It has ended."""
        spoke = self._open.pop(stream, None)
        if spoke is not None:
            self._wheel[spoke].pop(stream, None)

    async def ping_for_ever(self) -> None:
        """Ping every stream that was silent for a heartbeat, or nearly that long."""
        clock = asyncio.get_running_loop().time
        turn = self._heartbeat / SPOKES
        while True:
            await asyncio.sleep(turn)
            self._at = (self._at + 1) % SPOKES
            due, self._wheel[self._at] = self._wheel[self._at], {}
            ping = Frame("ping", None, 0, b"null")
            for number, stream in enumerate(tuple(due), start=1):
                if stream in self._open:  # it may have ended while others had their turn
                    turns = min((stream.wrote_at + self._heartbeat - clock()) / turn, SPOKES - 1)
                    if turns < 1:
                        stream.ping(ping)
                        turns = SPOKES - 1
                    self._put(stream, int(turns))
                if number % SLICE == 0:
                    await asyncio.sleep(0)

    def _put(self, stream: Pinged, turns: int) -> None:
        spoke = self._open[stream] = (self._at + turns) % SPOKES
        self._wheel[spoke][stream] = None


class Followed(Protocol):
    """A follower as a stream sees it; `live/follow.py` says what its members mean."""

    ready: Callable[[], None]
    over: bool
    error: Exception | None

    async def join(self, *, admitted: bool = True) -> bool: ...
    def take(self) -> Sequence[Frame]: ...
    def leave(self) -> None: ...


class Pinged(Protocol):
    """A stream as the table of streams sees it."""

    wrote_at: float

    def ping(self, frame: Frame) -> None: ...


class Edge(Protocol):
    """The outermost of our own app, as a stream sees it."""

    send: Send

    def stay(self, stream: EventStream) -> None:
        """Hold the request until the client or the stream ends, then call the stream's `close`."""

    def abort(self) -> None:
        """Cut the connection, whatever waits to be written."""


def come_back(format: WireFormat) -> Response:
    """A stream that only says when to come back. Any status but 200 would end an `EventSource` for good (WHATWG HTML,
    section 9.2.3: "fail the connection"), and whatever is in our way is so for the moment only."""
    response = Response(goodbye().wire(format))
    response.raw_headers += _headers(format)
    return response


def _headers(format: WireFormat) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", format.media_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"vary", b"Accept"),
    ]


class EventStream(Response):
    """The response of an event stream.

    It joins when it is sent, so that nothing is left behind by one that never is; what is wrong by then is answered by
    `refuse(error, request)`, but for a Redis that is away: see `come_back`. 204 when the client has seen `done`.
    """

    def __init__(
        self,
        follower: Followed,
        format: WireFormat,
        streams: Streams,
        *,
        refuse: Callable[[Exception, Request], Response],
    ) -> None:
        super().__init__(media_type=format.media_type)
        self.raw_headers = _headers(format)
        self.wrote_at = asyncio.get_running_loop().time()
        self._clock = asyncio.get_running_loop().time
        self._follower = follower
        self._format = format
        self._streams = streams
        self._refuse = refuse
        self._edge: Edge | None = None
        self._writing: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._ping: Frame | None = None
        self._begun = False
        self._done = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        follower = self._follower
        try:
            follows = await follower.join(admitted=not self._streams.full)
        except Exception as error:
            follower.leave()
            away = is_unavailable(error)
            refusal = come_back(self._format) if away else self._refuse(error, Request(scope))
            await refusal(scope, receive, send)
            return
        except BaseException:
            follower.leave()
            raise
        if not follows or scope["method"] == "HEAD":
            follower.leave()
            response = Response(status_code=204) if not follows else self._bare()
            await response(scope, receive, send)
            return
        self._streams.add(self)
        edge: Edge | None = scope.get("extensions", {}).get(EDGE)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if edge is None:
                await self._write_all(receive, send)
            else:
                self._edge = edge
                follower.ready = self._push
                edge.stay(self)
                self._push()
        except BaseException:
            self._edge = None
            raise
        finally:
            if self._edge is None:
                self.close()

    def _bare(self) -> Response:
        response = Response()
        response.raw_headers = self.raw_headers
        return response

    def close(self) -> None:
        """The client or the stream has ended."""
        self._done = True
        self._follower.ready = _nothing
        self._follower.leave()
        self._streams.discard(self)
        if self._writing is not None:
            self._writing.cancel()

    def ping(self, frame: Frame) -> None:
        """Nothing has happened for a heartbeat."""
        if self._edge is None:
            self._ping = frame
            if self._wake is not None:
                self._wake.set()
        elif self._writing is None and not self._done:
            self._write(frame.wire(self._format), last=False)

    # --- what is to be written --------------------------------------------------------------------------------------

    def _next(self) -> tuple[bytes, bool] | None:
        """Bytes, and whether they are the last; None: nothing for now."""
        follower, format = self._follower, self._format
        frames = follower.take()
        data = frames[0].wire(format) if len(frames) == 1 else b"".join([frame.wire(format) for frame in frames])
        if not self._begun:
            self._begun = True
            data = data if frames and frames[0].event == "retry" else format.opening + data
        if follower.error is not None and not isinstance(follower.error, JobstreamError):
            # Headers are out: all that can be said is the end of the stream; the client comes back with its last id.
            logger.error("an event stream broke", exc_info=follower.error)
        return (data, follower.over) if data or follower.over else None

    # --- pushed -----------------------------------------------------------------------------------------------------

    def _push(self) -> None:
        try:
            while self._writing is None and not self._done:
                piece = self._next()
                if piece is None:
                    return
                self._write(*piece)
        except Exception:
            logger.exception("an event stream broke")
            self._give_up()

    def _write(self, data: bytes, last: bool) -> None:
        """Hand the bytes to the server; if it must wait for the client, a task does."""
        assert self._edge is not None
        self.wrote_at = self._clock()
        self._done = last
        message: Message = {"type": "http.response.body", "body": data, "more_body": not last}
        sending = cast("Coroutine[Any, None, None]", self._edge.send(message))
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        self._writing = asyncio.create_task(self._finish(sending, waits_for), name="stream-write")

    async def _finish(self, sending: Coroutine[Any, None, None], waits_for: Any) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await _go_on(sending, waits_for)
        except Exception as error:
            if not isinstance(error, TimeoutError | OSError):
                logger.exception("an event stream broke")
            self._give_up()
        finally:
            self._writing = None
        self._push()

    def _give_up(self) -> None:
        self._done = True
        self._follower.leave()
        if self._edge is not None:
            self._edge.abort()

    # --- written by the request's own task --------------------------------------------------------------------------

    async def _write_all(self, receive: Receive, send: Send) -> None:
        self._wake = wake = asyncio.Event()
        self._follower.ready = wake.set
        wake.set()
        listener = asyncio.create_task(self._listen(receive), name="stream-listen")
        try:
            async for data, last in self._pieces(wake):
                self.wrote_at = self._clock()
                async with asyncio.timeout(WRITE_SECONDS):
                    await send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            return  # the server cuts a response that was not ended
        finally:
            await cancel(listener)

    async def _pieces(self, wake: asyncio.Event) -> AsyncIterator[tuple[bytes, bool]]:
        while True:
            await wake.wait()
            wake.clear()
            while (piece := self._next()) is not None:
                self._ping = None
                yield piece
                if piece[1]:
                    return
            if self._done:
                return
            ping, self._ping = self._ping, None
            if ping is not None:
                yield ping.wire(self._format), False

    async def _listen(self, receive: Receive) -> None:
        with contextlib.suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        self._done = True
        if self._wake is not None:
            self._wake.set()


def _nothing() -> None:
    """Nobody takes any more."""


@types.coroutine
def _go_on(started: Coroutine[Any, None, None], waits_for: Any) -> Generator[Any, None, None]:
    """Await a coroutine that has been started already and waits for `waits_for`, a future."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            try:
                waits_for = started.throw(error)
            except StopIteration:
                return
        else:
            try:
                waits_for = started.send(value)
            except StopIteration:
                return
