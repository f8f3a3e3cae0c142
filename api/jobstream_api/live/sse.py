"""Server-Sent Events (WHATWG HTML, section 9.2): frames to bytes, and the response that sends them."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobstream.errors import JobstreamError
from jobstream.redis import is_unavailable
from jobstream_api.live.follow import GOODBYE, OPENED, PING, Frame

logger = logging.getLogger("jobstream.sse")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
RETRY_MS = 2000
SPREAD_MS = 2000
"""Watchers of a process that ends come back over this time, not all at once."""

_RETRY = f"retry: {RETRY_MS}\n\n".encode()
_PING = b": ping\n\n"


def encode(frame: Frame) -> bytes:
    """One frame. The data is JSON, which has no line breaks."""
    if frame is PING:
        return _PING
    if frame is OPENED:
        return _RETRY
    if frame is GOODBYE:
        return f"retry: {RETRY_MS // 2 + random.randrange(SPREAD_MS)}\n\n".encode()
    head = f"id: {frame.id}\nevent: {frame.event}\ndata: " if frame.id else f"event: {frame.event}\ndata: "
    return head.encode() + frame.data + b"\n\n"


class EventStream(StreamingResponse):
    """The frames as Server-Sent Events. It ends when they end, and closes them when the client goes before that."""

    def __init__(self, frames: AsyncGenerator[Frame, None]) -> None:
        super().__init__(_body(frames), media_type="text/event-stream", headers=HEADERS)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A generator that is only dropped lets go of its watch when it is collected, whenever that is.
        async with contextlib.aclosing(self._frames):
            await super().__call__(scope, receive, send)


async def event_stream(frames: AsyncGenerator[Frame, None]) -> EventStream | None:
    """The response, once the watch stands, so that what is wrong is answered by its own status; None: nothing follows.

    Raises what `Follower.frames` raises before its first frame.
    """
    opened = await anext(frames, None)
    return None if opened is None else EventStream(frames)


async def _body(frames: AsyncIterator[Frame]) -> AsyncIterator[bytes]:
    yield _RETRY
    try:
        async for frame in frames:
            yield encode(frame)
    except JobstreamError:
        return  # purged while it was watched: the next request says so
    except Exception as error:
        # Headers are out: all that can be said is the end of the stream; the client comes back with its last id.
        if not is_unavailable(error):
            logger.exception("an event stream broke")
