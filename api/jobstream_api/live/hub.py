"""The hub: one Redis subscription connection per process, however many watchers; it fans a job's events out.

Why nothing is lost and nothing comes twice (with `live/feed.py` and `live/follow.py`):

1. A job's versions rise by one; one script writes record and log and publishes. A follower sends an event only when it
   continues the version that it sent or read last: what it has already is skipped, behind a gap it reads the log. A
   message that comes late, twice or never costs a read, never an event, wherever it went astray.
2. A gap shows with the next message. Where there may be no next one the feed is made stale, and a stale feed's follower
   reads the log: at the join, at every acknowledgement of a subscription (nothing is known of the time before it),
   after an overflow, and when `_look` finds a record ahead of what was heard (a lost *last* message).
3. `watch` returns when Redis has acknowledged the subscription on the connection that the hub listens to, and the
   follower reads after that: a later change reaches the feed, an earlier one is in what it reads. Was it the late
   acknowledgement of a subscription that is being given up, then the new one's follows, and 2 holds.
4. Only `_steer` sends SUBSCRIBE and UNSUBSCRIBE, one after the other, from the table: watchers change the table and
   ring. A watcher's cancellation cannot tear the connection, and no UNSUBSCRIBE overtakes a newer watcher's SUBSCRIBE.
   A channel without watchers stays, subscribed, until `_steer` takes it out: who comes before that joins it.
5. A connection that is silent and does not answer a PING is given up (redis-py asks, but does not mind the answer): a
   frozen server or a half-open link is noticed within three times `quiet` seconds.
6. A feed is bounded: of progress the latest stays, and one that overflows is emptied and stale. Nobody waits for it.

All of it runs in one event loop: between two awaits nothing else touches the tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from jobstream import keys
from jobstream.cancellation import cancel
from jobstream.events import JobEvent, parse_message, read_versions
from jobstream.redis import RedisSource, is_unavailable
from jobstream_api.live.feed import Feed

logger = logging.getLogger("jobstream.hub")

SUBSCRIBE_SECONDS = 3.0
"""How long a watcher waits for its subscription."""

READERS = 16
"""Followers that read the log at a time: a reconnect makes all feeds stale at once, and the connections are few."""

SLICE = 64
"""Events put into feeds in one go: followers and other requests have their turn in between."""

LOOK_BATCH = 500
"""Records looked at in one round trip."""

_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 1.0


class _Channel:
    """A watched job: its feeds, the last version heard, and how far its subscription is on this connection."""

    def __init__(self) -> None:
        self.feeds: set[Feed] = set()
        self.version = 0
        self.asked = False
        self.subscribed = asyncio.Event()

    def make_stale(self) -> None:
        """Every follower reads the log."""
        for feed in self.feeds:
            feed.make_stale()


class Hub:
    """Use `running()` for as long as jobs are watched.

    `quiet`: seconds of silence until Redis is asked whether it is there, and seconds that it has for the answer.
    `look`: seconds between two looks for lost last messages.
    """

    def __init__(self, source: RedisSource, *, quiet: float = 5.0, look: float = 15.0) -> None:
        self._source = source
        self._quiet = quiet
        self._look_every = look
        self._channels: dict[str, _Channel] = {}
        self._touched: set[str] = set()
        self._turned = asyncio.Event()
        self._heard = asyncio.Event()
        self._filled = 0
        self._draining = False
        self._listening = False
        self.readers = asyncio.Semaphore(READERS)
        """Held by a follower while it reads the log."""

    @property
    def watchers(self) -> int:
        """How many feeds there are."""
        return sum(len(channel.feeds) for channel in self._channels.values())

    @property
    def channels(self) -> int:
        """How many jobs are subscribed to, or about to be."""
        return len(self._channels)

    @property
    def listening(self) -> bool:
        """True while the subscription connection stands, as far as is known."""
        return self._listening

    def drain(self) -> None:
        """Close every feed, and every one that is opened from now on."""
        self._draining = True
        for channel in self._channels.values():
            channel.subscribed.set()  # whoever waits for it need not
            for feed in channel.feeds:
                feed.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        tasks = {
            asyncio.create_task(self._listen_for_ever(), name="hub-listen"),
            asyncio.create_task(self._look_for_ever(), name="hub-look"),
        }
        try:
            yield
        finally:
            self.drain()
            await cancel(*tasks)

    @contextlib.asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[Feed]:
        """A feed of the job's events from now on, stale at first: read the log, then go on with the feed.

        Redis has acknowledged the subscription when this returns; a draining hub gives a closed feed at once. Raises
        TimeoutError when Redis is away.
        """
        feed = Feed()
        if self._draining:
            feed.close()
            yield feed
            return
        channel = self._channels.setdefault(job_id, _Channel())
        channel.feeds.add(feed)
        if not channel.asked:
            self._touch(job_id)
        try:
            async with asyncio.timeout(SUBSCRIBE_SECONDS):
                await channel.subscribed.wait()
            yield feed
        finally:  # without an await: a cancellation cannot come between
            channel.feeds.discard(feed)
            if not channel.feeds and self._channels.get(job_id) is channel:
                self._leave(job_id, channel)

    def _touch(self, job_id: str) -> None:
        self._touched.add(job_id)
        self._turned.set()

    def _leave(self, job_id: str, channel: _Channel) -> None:
        if channel.asked:
            self._touch(job_id)
        else:
            del self._channels[job_id]

    async def _listen_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        pause = _PAUSE_SECONDS
        while not self._draining:
            began = clock()
            try:
                await self._listen()
            except Exception as error:
                if not is_unavailable(error):
                    logger.error("the event subscription failed", exc_info=error)
                elif pause == _PAUSE_SECONDS:
                    logger.warning("the event subscription was lost (%s), trying again", type(error).__name__)
            if clock() - began > 2 * _PAUSE_MAX_SECONDS:
                pause = _PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX_SECONDS)

    async def _listen(self) -> None:
        """One connection, until it is lost."""
        client = self._source.subscriber()
        try:
            async with client.pubsub() as pubsub:
                # One channel is always subscribed to: redis-py reads nothing otherwise. The deadline is for the
                # connection, whose handshake has none: subscribers have no read timeout.
                async with asyncio.timeout(self._quiet):
                    await pubsub.subscribe(keys.CATALOGUE_CHANGED)
                self._touched.update(self._channels)
                self._turned.set()
                self._listening = True
                # Not a TaskGroup: in Python before 3.11.3 its own cancellation can reach the task that holds it.
                tasks = [
                    asyncio.create_task(loop(pubsub), name=f"hub{loop.__name__}")
                    for loop in (self._hear, self._steer, self._check)
                ]
                try:
                    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        task.result()
                finally:
                    self._unsubscribed()
                    await cancel(*tasks)
        finally:
            await client.aclose()

    def _unsubscribed(self) -> None:
        """The connection is gone, and its subscriptions with it."""
        self._listening = False
        for job_id, channel in list(self._channels.items()):
            channel.asked = False
            if not self._draining:
                channel.subscribed.clear()
            if not channel.feeds:
                del self._channels[job_id]

    async def _steer(self, pubsub: PubSub) -> None:
        """Make Redis's subscriptions those of the table, wherever it was touched."""
        while True:
            await self._turned.wait()
            self._turned.clear()
            touched, self._touched = self._touched, set()
            new, old = [], []
            for job_id in touched:
                channel = self._channels.get(job_id)
                if channel is None:
                    continue
                if not channel.feeds:
                    del self._channels[job_id]
                    old.append(job_id)
                elif not channel.asked:
                    channel.asked = True
                    new.append(job_id)
            if old:
                await pubsub.unsubscribe(*map(keys.events, old))
            if new:
                await pubsub.subscribe(*map(keys.events, new))

    async def _check(self, pubsub: PubSub) -> None:
        """Raises TimeoutError, which ends the connection, when Redis is silent and does not answer."""
        while True:
            self._heard.clear()
            await asyncio.sleep(self._quiet)
            if not self._heard.is_set():
                async with asyncio.timeout(self._quiet):
                    await pubsub.ping()
                    await self._heard.wait()

    async def _hear(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            self._heard.set()
            if message is None or message["channel"] is None:  # an answer to a PING
                continue
            channel = self._channels.get(message["channel"].decode().removeprefix(keys.EVENTS))
            if channel is None:
                continue
            if message["type"] == "subscribe":
                channel.subscribed.set()
                channel.make_stale()
            elif message["type"] == "message":
                event = parse_message(message["data"])
                channel.version = event.version
                await self._fan_out(channel, event)

    async def _fan_out(self, channel: _Channel, event: JobEvent) -> None:
        for feed in tuple(channel.feeds):
            feed.put(event)
            self._filled += 1
            if self._filled % SLICE == 0:
                await asyncio.sleep(0)

    async def _look_for_ever(self) -> None:
        client = self._source.client()
        try:
            while True:
                await asyncio.sleep(self._look_every)
                try:
                    await self._look(client)
                except Exception as error:
                    if not is_unavailable(error):
                        logger.exception("the look for lost messages failed")
        finally:
            await client.aclose()

    async def _look(self, client: Redis) -> None:
        """Compare what was heard with the records. A message that is still under way costs a read, no more."""
        watched = list(self._channels)
        for start in range(0, len(watched), LOOK_BATCH):
            job_ids = watched[start : start + LOOK_BATCH]
            for job_id, version in zip(job_ids, await read_versions(client, job_ids), strict=True):
                channel = self._channels.get(job_id)
                if channel is None:
                    continue
                for feed in channel.feeds:
                    # Behind what was read: gone, or history went back.
                    if version is None or version < feed.version or version > max(channel.version, feed.version):
                        feed.make_stale()
