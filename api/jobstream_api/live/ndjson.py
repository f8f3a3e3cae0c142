"""Newline-delimited JSON: frames to lines `{"id":…,"event":…,"time":…,"data":…}`."""

from __future__ import annotations

import time

from jobstream.job import from_ms, wire_time
from jobstream_api.live.frame import Frame


class JsonLines:
    """`application/x-ndjson`. Pings and the farewell (`retry`, data: ms until to come back) are lines, too."""

    media_type = "application/x-ndjson"
    opening = b""

    def encode(self, frame: Frame) -> bytes:
        """One line. A frame that is no event of the job has no time of its own: it gets the present."""
        when = wire_time(from_ms(frame.time_ms or time.time_ns() // 1_000_000))
        event_id = b"null" if frame.id is None else b'"%b"' % frame.id.encode()
        return b'{"id":%b,"event":"%b","time":"%b","data":%b}\n' % (
            event_id,
            frame.event.encode(),
            when.encode(),
            frame.data,
        )


NDJSON = JsonLines()
