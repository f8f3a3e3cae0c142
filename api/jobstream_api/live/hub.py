"""The hub: one Redis subscription connection per process, however many watchers; it fans a job's events out.

Why nothing is lost (with `live/follow.py`):

1. `watch` returns when Redis has acknowledged the subscription, on the connection that the hub listens to. The follower
   reads record and log after that, so every later change reaches its feed, and every earlier one is in what it read.
2. A job's versions rise by one. The hub compares each message's version with the one before; a gap (pub/sub dropped
   something) makes every feed of the job stale, and a stale feed's follower reads the log again from what it has.
3. After a reconnect nothing is known of the time between: all feeds are stale.
4. A lost *last* message has no successor that would reveal it: followers look at the record when they have been silent
   for a heartbeat.
5. A feed is bounded. `progress` is state: a newer one replaces the one that waits. A feed that overflows with events
   is emptied and marked stale: its follower catches up from the log, and no other watcher waits for it.

All of it runs in one event loop: between two awaits nothing else touches the tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator

from redis.asyncio.client import PubSub

from jobstream import keys
from jobstream.events import JobEvent, parse_message
from jobstream.redis import RedisSource, is_unavailable

logger = logging.getLogger("jobstream.hub")

FEED_EVENTS = 512
"""Events that may wait for one watcher."""


class Feed:
    """What one watcher has not seen yet."""

    def __init__(self) -> None:
        self._events: deque[JobEvent] = deque()
        self._stale = False
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, event: JobEvent) -> None:
        """Append an event; progress replaces progress that still waits at the end."""
        if event.kind == "progress" and self._events and self._events[-1].kind == "progress":
            self._events.pop()
        self._events.append(event)
        if len(self._events) > FEED_EVENTS:
            self.make_stale()
        self._changed.set()

    def make_stale(self) -> None:
        """Forget what waits: the follower must read the log."""
        self._events.clear()
        self._stale = True
        self._changed.set()

    def close(self) -> None:
        """End the watch: the process is shutting down."""
        self._closed = True
        self._changed.set()

    @property
    def closed(self) -> bool:
        """True when the process is shutting down."""
        return self._closed

    async def take(self, timeout: float) -> tuple[list[JobEvent], bool]:
        """What has come, and whether the feed was stale; after `timeout` seconds of silence nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        self._changed.clear()
        events, self._events = list(self._events), deque()
        stale, self._stale = self._stale, False
        return events, stale


class _Channel:
    """A watched job: its feeds, the last version heard, and whether Redis has acknowledged the subscription."""

    def __init__(self) -> None:
        self.feeds: set[Feed] = set()
        self.version: int | None = None
        self.subscribed = asyncio.Event()


class Hub:
    """Use as `async with`; then `watch` jobs."""

    def __init__(self, source: RedisSource) -> None:
        self._source = source
        self._channels: dict[str, _Channel] = {}
        self._pubsub: PubSub | None = None
        self._draining = False

    @property
    def watchers(self) -> int:
        """How many feeds there are."""
        return sum(len(channel.feeds) for channel in self._channels.values())

    def drain(self) -> None:
        """Close every feed, and every one that is opened from now on."""
        self._draining = True
        for channel in self._channels.values():
            for feed in channel.feeds:
                feed.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        task = asyncio.create_task(self._listen_for_ever(), name="hub")
        try:
            yield
        finally:
            self.drain()
            task.cancel()
            await asyncio.wait({task})

    @contextlib.asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[Feed]:
        """A feed of the job's events from now on. Redis has acknowledged the subscription when this returns.

        Raises redis-py's errors when Redis is away.
        """
        feed = Feed()
        channel = self._channels.get(job_id)
        try:
            if channel is None:
                channel = self._channels[job_id] = _Channel()
                channel.feeds.add(feed)
                # Not connected: the listener subscribes to every channel of the table when it is again.
                if self._pubsub is not None:
                    await self._pubsub.subscribe(keys.events(job_id))
            channel.feeds.add(feed)
            if self._draining:
                feed.close()
            async with asyncio.timeout(5):
                await channel.subscribed.wait()
            yield feed
        finally:
            if channel is not None:
                channel.feeds.discard(feed)
                if not channel.feeds and self._channels.get(job_id) is channel:
                    await self._unsubscribe(job_id)

    async def _unsubscribe(self, job_id: str) -> None:
        del self._channels[job_id]
        if self._pubsub is not None:
            with contextlib.suppress(Exception):  # a connection that is gone has no subscriptions
                await self._pubsub.unsubscribe(keys.events(job_id))

    async def _listen_for_ever(self) -> None:
        pause = 0.05
        while True:
            try:
                await self._listen()
            except Exception as error:
                if is_unavailable(error):
                    logger.warning("event subscription lost: %s", type(error).__name__)
                else:
                    logger.exception("event subscription failed")
            finally:
                self._pubsub = None
            for channel in self._channels.values():
                channel.subscribed.clear()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _listen(self) -> None:
        client = self._source.subscriber()
        try:
            async with client.pubsub() as pubsub:
                known = set(self._channels)
                # One channel is always subscribed to: redis-py listens to nothing otherwise.
                await pubsub.subscribe(keys.CATALOGUE_CHANGED, *map(keys.events, known))
                self._pubsub = pubsub
                if missed := self._channels.keys() - known:  # watched while we were connecting
                    await pubsub.subscribe(*map(keys.events, missed))
                while True:
                    message = await pubsub.get_message(timeout=5)
                    if message is not None:
                        self._hear(message["type"], message["channel"], message["data"])
        finally:
            await client.aclose()

    def _hear(self, kind: str, name: bytes, data: bytes) -> None:
        job_id = name.decode().removeprefix(keys.EVENTS)
        channel = self._channels.get(job_id)
        if channel is None:
            return
        if kind == "subscribe":
            # Also after a reconnect: what happened in between is in the log only.
            channel.version = None
            channel.subscribed.set()
            for feed in channel.feeds:
                feed.make_stale()
        elif kind == "message":
            event = parse_message(data)
            gap = channel.version is not None and event.version != channel.version + 1
            channel.version = event.version
            for feed in channel.feeds:
                if gap:
                    feed.make_stale()
                else:
                    feed.put(event)
