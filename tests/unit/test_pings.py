"""One timer pings all streams: those that are silent, as often as they must be, and no others."""

from __future__ import annotations

import asyncio
import itertools
import math
import time

import pytest

from jobstream.cancellation import cancel
from jobstream_api.live.frame import Frame
from jobstream_api.live.stream import SLICE, SPOKES, Streams

HEARTBEAT = 0.15

pytestmark = pytest.mark.timeout(30)


class Silent:
    """A stream that has nothing to say."""

    def __init__(self) -> None:
        self.wrote_at = time.monotonic()
        self.pinged_at: list[float] = []
        self.pinged = asyncio.Event()

    def ping(self, frame: Frame) -> None:
        self.wrote_at = time.monotonic()
        self.pinged_at.append(self.wrote_at)
        self.pinged.set()


class Talkative(Silent):
    """A stream that always has written just now."""

    wrote_at = property(lambda self: time.monotonic(), lambda self, value: None)


async def test_silent_streams_are_pinged_no_more_often_than_they_must_be_and_others_never() -> None:
    streams = Streams(most=10, heartbeat=HEARTBEAT)
    silent, talkative, told = [Silent() for _ in range(3 * SLICE)], Talkative(), Silent()
    told.wrote_at = math.inf
    for stream in (*silent, talkative, told):
        streams.add(stream)
    timer = asyncio.create_task(streams.ping_for_ever())
    for _ in range(3):
        for stream in silent:
            await stream.pinged.wait()
            stream.pinged.clear()
    await cancel(timer)
    assert talkative.pinged_at == told.pinged_at == []
    for stream in silent:
        gaps = [after - before for before, after in itertools.pairwise(stream.pinged_at)]
        assert min(gaps) > HEARTBEAT * (SPOKES - 1) / SPOKES - 1e-3


async def test_a_stream_that_has_ended_is_pinged_no_more() -> None:
    streams = Streams(most=10, heartbeat=HEARTBEAT)
    ended, silent = Silent(), Silent()
    streams.add(ended)
    streams.add(silent)
    timer = asyncio.create_task(streams.ping_for_ever())
    await silent.pinged.wait()
    streams.discard(ended)
    streams.discard(ended)
    pings = len(ended.pinged_at)
    silent.pinged.clear()
    await silent.pinged.wait()
    await cancel(timer)
    assert len(streams) == 1
    assert len(ended.pinged_at) == pings
