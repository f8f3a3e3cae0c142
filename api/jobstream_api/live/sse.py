"""Server-Sent Events (WHATWG HTML, section 9.2): frames to bytes, and the response that sends them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from jobstream.errors import JobstreamError
from jobstream.redis import is_unavailable
from jobstream_api.live.follow import GOODBYE, PING, Frame

logger = logging.getLogger("jobstream.sse")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
RETRY_MS = 2000
RETRY = f"retry: {RETRY_MS}\n\n".encode()
_PING = b": ping\n\n"


def encode(frame: Frame) -> bytes:
    """One frame. The data is JSON, which has no line breaks."""
    if frame is PING:
        return _PING
    if frame is GOODBYE:
        return RETRY
    head = f"id: {frame.id}\nevent: {frame.event}\ndata: " if frame.id else f"event: {frame.event}\ndata: "
    return head.encode() + frame.data + b"\n\n"


def event_stream(frames: AsyncIterator[Frame]) -> StreamingResponse:
    """The response: `retry:` once, then the frames; it ends when they end."""
    return StreamingResponse(_body(frames), media_type="text/event-stream", headers=HEADERS)


async def _body(frames: AsyncIterator[Frame]) -> AsyncIterator[bytes]:
    yield RETRY
    try:
        async for frame in frames:
            yield encode(frame)
    except JobstreamError:
        return  # purged while it was watched: the next request says so
    except Exception as error:
        # Headers are out: all that can be said is the end of the stream; the client comes back with its last id.
        if not is_unavailable(error):
            logger.exception("an event stream broke")
