"""WebSocket (RFC 6455): the same JSON lines as messages; the client may say where to go on, and cancel the job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from jobstream.cancellation import cancel
from jobstream.errors import BatchNotFound, InvalidParameter, JobGone, JobNotFound, JobstreamError, RedisUnavailable
from jobstream.events import parse_event_id
from jobstream.problem import problem
from jobstream.redis import is_unavailable
from jobstream_api.live.follow import Follower
from jobstream_api.live.frame import Frame
from jobstream_api.live.ndjson import NDJSON
from jobstream_api.live.stream import WRITE_SECONDS, Streams

logger = logging.getLogger("jobstream.websocket")

DONE = 1000
NOT_TEXT = 1003
NOT_JSON = 1007
NOT_UNDERSTOOD = 1008
DRAINING = 1012
AWAY = 1013
NOT_FOUND = 4404
"""Close codes: of RFC 6455 (section 7.4.1) and its registry, and one of our own."""

MESSAGE_BYTES = 16 * 1024
"""Longest message of a client."""

_REASON_BYTES = 120


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may say."""

    after: str | None = None
    action: Literal["cancel"] | None = None


class _Close(Exception):
    """The socket is to be closed, with a code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Socket:
    """One client's WebSocket, from the handshake to the close."""

    wrote_at = math.inf
    """The protocol has pings of its own, which uvicorn sends."""

    def __init__(
        self,
        websocket: WebSocket,
        follower: Follower,
        streams: Streams,
        *,
        cancel_job: Callable[[], Awaitable[object]],
    ) -> None:
        self._websocket = websocket
        self._follower = follower
        self._streams = streams
        self._cancel_job = cancel_job
        self._changed = asyncio.Event()
        self._answers: list[Frame] = []

    def ping(self, frame: Frame) -> None:
        """Not needed."""

    async def serve(self) -> None:
        """Until the job is done, the client goes, or the process ends."""
        follower = self._follower
        self._streams.add(self)
        try:
            if not await follower.join(admitted=not self._streams.overfull):
                raise _Close(DONE, "done was seen already")
            follower.ready = self._changed.set
            self._changed.set()
            tasks = [asyncio.create_task(work()) for work in (self._write, self._read)]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
            finally:
                await cancel(*tasks)
        except Exception as error:
            await _close(self._websocket, _reason(error))
        finally:
            follower.leave()
            self._streams.discard(self)

    async def _write(self) -> None:
        """Ends with `_Close`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            answers, self._answers = self._answers, []
            for frame in answers:
                await self._send(frame)
            while frames := self._follower.take():
                for frame in frames:
                    await self._send(frame)
                if frames[-1].event == "retry":
                    raise _Close(DRAINING, "come back a little later")
                if self._follower.over:
                    raise _Close(DONE, "done")
            if self._follower.error is not None:
                raise self._follower.error

    async def _send(self, frame: Frame) -> None:
        async with asyncio.timeout(WRITE_SECONDS):
            await self._websocket.send_text(frame.wire(NDJSON)[:-1].decode())

    async def _read(self) -> None:
        """Ends when the client has gone. Raises `_Close` for what it may not say."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._obey(_understand(message.get("text")))

    async def _obey(self, said: _Said) -> None:
        if said.after is not None:
            after = parse_event_id(said.after)
            if after is None:
                raise _Close(NOT_UNDERSTOOD, "`after` is not an id that a stream has given")
            self._follower.restart(after)
        if said.action == "cancel":
            try:
                await self._cancel_job()
            except JobGone:
                pass  # it has ended, and the stream says so
            except Exception as error:
                if not isinstance(error, JobstreamError):
                    if not is_unavailable(error):
                        raise
                    error = RedisUnavailable("Redis is away or does not take writes; try again")
                self._answers.append(Frame("problem", None, 0, msgspec.json.encode(problem(error))))
                self._changed.set()


def _understand(text: str | None) -> _Said:
    if text is None:
        raise _Close(NOT_TEXT, "messages are text: JSON")
    try:
        said = msgspec.json.decode(text, type=_Said)
    except msgspec.ValidationError as error:
        raise _Close(NOT_UNDERSTOOD, str(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _Close(NOT_JSON, "not JSON") from None
    if said.after is None and said.action is None:
        raise _Close(NOT_UNDERSTOOD, 'say {"after": "<id>"} or {"action": "cancel"}')
    return said


def _reason(error: Exception) -> _Close | None:
    """How to close; None when there is nobody to be told."""
    if isinstance(error, _Close):
        return error
    if isinstance(error, JobNotFound | BatchNotFound | JobGone):
        return _Close(NOT_FOUND, str(error))
    if isinstance(error, InvalidParameter):
        return _Close(NOT_UNDERSTOOD, str(error))
    if isinstance(error, WebSocketDisconnect):
        return None
    if is_unavailable(error):
        return _Close(AWAY, "Redis is away; try again")
    logger.error("a WebSocket broke", exc_info=error)
    return _Close(1011, "see the service's log")


async def refuse_socket(websocket: WebSocket, error: Exception) -> None:
    """Close it for what was wrong before it was served. It was accepted, or a browser would not hear the reason."""
    await _close(websocket, _reason(error))


async def _close(websocket: WebSocket, why: _Close | None) -> None:
    if why is None or websocket.client_state is WebSocketState.DISCONNECTED:
        return
    reason = why.reason.encode()[:_REASON_BYTES].decode(errors="ignore")
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        await websocket.close(why.code, reason)
