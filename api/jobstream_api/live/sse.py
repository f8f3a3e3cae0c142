"""Server-Sent Events (WHATWG HTML, section 9.2): frames to bytes."""

from __future__ import annotations

from jobstream_api.live.follow import RETRY_MS
from jobstream_api.live.frame import Frame


class EventStreamFormat:
    """`text/event-stream`."""

    media_type = "text/event-stream; charset=utf-8"
    opening = f"retry: {RETRY_MS}\n\n".encode()

    def encode(self, frame: Frame) -> bytes:
        """One frame. The data is JSON, which has no line breaks."""
        if frame.event == "ping":
            return b": ping\n\n"
        if frame.event == "retry":
            return b"retry: %b\n\n" % frame.data
        if frame.id is None:
            return b"event: %b\ndata: %b\n\n" % (frame.event.encode(), frame.data)
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (frame.id.encode(), frame.event.encode(), frame.data)


SSE = EventStreamFormat()
