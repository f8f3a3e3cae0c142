"""A feed is bounded, keeps the order, conflates progress, and says when the log knows more."""

from __future__ import annotations

import asyncio

import pytest

from jobstream.events import JobEvent
from jobstream_api.live import feed as module
from jobstream_api.live.feed import FEED_BYTES, FEED_EVENTS, Feed, Heard


def event(version: int, kind: str = "log", data: bytes = b"{}") -> JobEvent:
    return JobEvent(version, kind, 0, data)


@pytest.fixture
async def feed() -> Feed:
    """One whose follower has read the log."""
    feed = Feed()
    assert await feed.take(0) is None
    return feed


async def test_a_new_feed_is_stale_and_holds_nothing_until_the_log_is_read() -> None:
    feed = Feed()
    feed.put(event(1))
    assert await feed.take(60) is None
    assert await feed.take(0) == []


async def test_events_come_in_order_each_once(feed: Feed) -> None:
    for version in (5, 6, 7):
        feed.put(event(version))
    assert await feed.take(60) == [Heard(version, event(version)) for version in (5, 6, 7)]
    assert await feed.take(0) == []


async def test_progress_replaces_the_progress_before_it_and_stands_for_both(feed: Feed) -> None:
    for version in (5, 6, 7):
        feed.put(event(version, "progress", str(version).encode()))
    assert await feed.take(60) == [Heard(5, event(7, "progress", b"7"))]


async def test_progress_does_not_hide_a_gap(feed: Feed) -> None:
    feed.put(event(5, "progress"))
    feed.put(event(7, "progress"))
    assert [heard.since for heard in await feed.take(60) or []] == [5, 7]


async def test_progress_does_not_overtake(feed: Feed) -> None:
    feed.put(event(5, "progress"))
    feed.put(event(6, "log"))
    feed.put(event(7, "progress"))
    assert [heard.event.version for heard in await feed.take(60) or []] == [5, 6, 7]


@pytest.mark.parametrize("kind", ["status", "log", "chunk", "done"])
async def test_nothing_else_is_conflated(feed: Feed, kind: str) -> None:
    feed.put(event(5, kind))
    feed.put(event(6, kind))
    assert await feed.take(60) == [Heard(5, event(5, kind)), Heard(6, event(6, kind))]


async def test_too_many_events_make_it_stale_and_empty(feed: Feed) -> None:
    for version in range(FEED_EVENTS):
        feed.put(event(version))
    assert len(feed._waiting) == FEED_EVENTS
    feed.put(event(FEED_EVENTS))
    feed.put(event(FEED_EVENTS + 1))
    assert len(feed._waiting) == 0
    assert await feed.take(60) is None
    feed.put(event(FEED_EVENTS + 2))
    assert await feed.take(60) == [Heard(FEED_EVENTS + 2, event(FEED_EVENTS + 2))]


async def test_too_many_bytes_make_it_stale_and_empty(feed: Feed) -> None:
    half = bytes(FEED_BYTES // 2)
    feed.put(event(1, "chunk", half))
    feed.put(event(2, "chunk", half))
    assert len(await feed.take(60) or []) == 2
    for version in (3, 4, 5):
        feed.put(event(version, "chunk", half))
    assert await feed.take(60) is None


async def test_progress_that_was_replaced_does_not_count(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEED_BYTES", 10)
    for version in range(100):
        feed.put(event(version, "progress", b"12345678"))
    assert len(await feed.take(60) or []) == 1


async def test_taking_waits_for_the_next_event(feed: Feed) -> None:
    taking = asyncio.create_task(feed.take(60))
    await asyncio.sleep(0)
    assert not taking.done()
    feed.put(event(1))
    assert await taking == [Heard(1, event(1))]


async def test_closing_ends_the_wait(feed: Feed) -> None:
    taking = asyncio.create_task(feed.take(60))
    await asyncio.sleep(0)
    feed.close()
    assert await taking == []
    assert feed.closed
