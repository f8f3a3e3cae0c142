"""Frames as Server-Sent Events, and as JSON lines."""

from __future__ import annotations

import json

import pytest

from jobstream_api.live.follow import goodbye
from jobstream_api.live.frame import Frame, WireFormat
from jobstream_api.live.ndjson import NDJSON
from jobstream_api.live.sse import SSE

LOG = Frame("log", "0123abcd-3", 1_700_000_000_000, b'{"message":"a"}')
PROGRESS = Frame("progress", None, 1_700_000_000_001, b'{"current":1}')
PING = Frame("ping", None, 0, b"null")


def test_a_durable_frame_has_an_id() -> None:
    assert SSE.encode(LOG) == b'id: 0123abcd-3\nevent: log\ndata: {"message":"a"}\n\n'
    assert NDJSON.encode(LOG) == (
        b'{"id":"0123abcd-3","event":"log","time":"2023-11-14T22:13:20.000Z","data":{"message":"a"}}\n'
    )


def test_a_frame_that_is_state_has_none() -> None:
    assert SSE.encode(PROGRESS) == b'event: progress\ndata: {"current":1}\n\n'
    assert json.loads(NDJSON.encode(PROGRESS))["id"] is None


def test_a_ping_is_a_comment_or_a_line() -> None:
    assert SSE.encode(PING) == b": ping\n\n"
    line = json.loads(NDJSON.encode(PING))
    assert (line["id"], line["event"], line["data"]) == (None, "ping", None)


def test_a_goodbye_spreads_those_who_come_back() -> None:
    pauses = {int(SSE.encode(goodbye()).removeprefix(b"retry: ").removesuffix(b"\n\n")) for _ in range(200)}
    assert min(pauses) >= 1000
    assert max(pauses) < 3000
    assert len(pauses) > 50


@pytest.mark.parametrize("format", [SSE, NDJSON])
def test_a_frame_is_encoded_once_for_all_who_are_sent_it(format: WireFormat) -> None:
    assert LOG.wire(format) is LOG.wire(format)
    assert LOG.wire(format) == format.encode(LOG)
