"""The hub: one Redis subscription connection per process, however many watchers; it fans a job's events out.

Why nothing is lost and nothing comes twice (with `live/follow.py`):

1. A job's versions rise by one; one script writes record and log and publishes. A follower takes an event only when it
   continues the version that it was sent or read last: what it has already is skipped, behind a gap it reads the log. A
   message that comes late, twice or never costs a read, never an event, wherever it went astray.
2. A gap shows with the next message. Where there may be no next one the follower is made stale, and a stale follower
   reads the log: at every acknowledgement of a subscription (nothing is known of the time before it), when it was full,
   and when `_look` finds a record ahead of what was heard (a lost *last* message).
3. `subscribe` returns when Redis has acknowledged the subscription on the connection that the hub listens to, and the
   follower reads after that: a later change is heard, an earlier one is in what it reads. Was it the late
   acknowledgement of a subscription that is being given up, then the new one's follows, and 2 holds.
4. A read serves all followers that asked for the same before it *began*; whoever asks later gets one of his own. What a
   follower hears while it waits for its page is kept, and put behind it.
5. Only `_steer` sends SUBSCRIBE and UNSUBSCRIBE, one after the other, from the table: watchers change the table and
   ring. A watcher's cancellation cannot tear the connection, and no UNSUBSCRIBE overtakes a newer watcher's SUBSCRIBE.
   A channel without watchers stays, subscribed, until `_steer` takes it out: who comes before that joins it.
6. A channel's frames go out in the order in which they came: at once to a few followers; to many in slices, by one pump
   per channel, so that a job with thousands of watchers keeps nobody waiting. Progress is held for `STATE_SECONDS` at
   most, and goes out before whatever comes behind it. It stands for the progress that it has replaced, so it is no gap.
7. Ids carry the epoch, the name of Redis's history. It is read after every connection and with every look, and told to
   a follower before anything of the new history: `begin_anew`. A page of another epoch than the hub's is thrown away.
8. A connection that is silent and does not answer a PING is given up: a frozen server or a half-open link is noticed
   within three times `quiet` seconds.
9. What waits for a follower, and for a pump, is bounded: when it is full, followers become stale. Nobody waits for
   anybody: `hear` and `ready` do not wait, and what must wait for a socket does so in a task of that socket.

All of it runs in one event loop: between two awaits nothing else touches the tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobstream import keys
from jobstream.cancellation import cancel
from jobstream.errors import JobGone, JobNotFound
from jobstream.events import JobEvent, parse_message, purged_record, read_epoch, read_snapshot, read_versions
from jobstream.redis import RedisSource, is_unavailable
from jobstream.store import was_purged
from jobstream.subscription import Subscription
from jobstream_api.live.frame import Frame, event_frame
from jobstream_api.live.page import Page, job_json

logger = logging.getLogger("jobstream.hub")

SUBSCRIBE_SECONDS = 3.0
"""How long a watcher waits for its subscription; longer when the loop itself is late."""

_TURNS = 6

READERS = 16
"""Reads of logs at a time: a reconnect makes all followers stale at once, and the connections are few."""

READ_AGAIN = 2
"""How often a read that Redis seems not to answer is made again, while the subscription stands."""

PAGE_EVENTS = 256
"""Log entries read at a time: a watcher that is slow holds no more of them than this."""

SLICE = 64
"""Followers told in one go: others have their turn in between."""

QUEUED = 512
"""Frames that may wait for a channel's pump."""

STATE_SECONDS = 0.05
"""Progress of a job goes out no more often than this."""

DRAIN_SECONDS = 0.5
"""Over which time the streams of a process that ends are told so."""

LOOK_BATCH = 500
"""Records looked at in one round trip."""

_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 1.0


class Counts:
    """What the hub and its followers did, for the metrics. Nothing of it is lost for a watcher: see above, and 9."""

    __slots__ = ("conflated", "heard", "overrun", "reads", "told")

    def __init__(self) -> None:
        self.heard = 0
        """Events that Redis published of watched jobs."""
        self.told = 0
        """Frames that went to followers."""
        self.conflated = 0
        """Progress that newer progress has replaced before it went out."""
        self.overrun = 0
        """Times that too much waited for somebody: dropped, and read from the log instead."""
        self.reads = 0
        """Reads of logs."""


class Listener(Protocol):
    """What the hub knows of a follower. Its methods must neither wait nor raise."""

    job_id: str
    version: int

    def hear(self, frame: Frame) -> None: ...
    def make_stale(self) -> None: ...
    def begin_anew(self) -> None: ...
    def close(self) -> None: ...
    def read_done(self, page: Page) -> None: ...
    def read_failed(self, error: Exception) -> None: ...


class Ear(Protocol):
    """Who hears all of a channel that is no job's. Its methods must neither wait nor raise."""

    def hear(self, message: bytes) -> None: ...
    def make_stale(self) -> None:
        """Something may not have been heard, or history has forked."""

    def close(self) -> None: ...


class _Channel:
    """A watched job: its followers, the last version heard, and how far its subscription is on this connection."""

    __slots__ = (
        "acknowledged",
        "asked",
        "ear",
        "followers",
        "held",
        "pumping",
        "queue",
        "subscribed",
        "told_at",
        "version",
        "waiting",
    )

    def __init__(self) -> None:
        self.followers: dict[Listener, None] = {}
        self.ear: Ear | None = None
        """Instead of followers, when the channel is no job's."""
        self.version = 0
        self.asked = False
        self.subscribed = False
        self.acknowledged: asyncio.Future[None] | None = None
        """What those who join wait for; one deadline for all of them."""
        self.held: Frame | None = None
        """Progress that goes out a little later."""
        self.waiting: asyncio.TimerHandle | None = None
        self.told_at = 0.0
        self.queue: deque[Frame] | None = None
        self.pumping = False

    @property
    def idle(self) -> bool:
        """True when nobody hears it."""
        return not self.followers and self.ear is None

    def make_stale(self) -> None:
        """What was published until now may not have been heard."""
        for follower in tuple(self.followers):
            follower.make_stale()
        if self.ear is not None:
            self.ear.make_stale()


class _Read:
    """A read of a log that has not begun: who wants it."""

    __slots__ = ("followers", "page")

    def __init__(self) -> None:
        self.page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self.followers: list[Listener] = []


class Hub:
    """Use `running()` for as long as jobs are watched.

    `quiet`: seconds of silence until Redis is asked whether it is there, and seconds that it has for the answer.
    `look`: seconds between two looks for lost last messages. `prefix` goes before the links of the jobs it tells of.
    """

    def __init__(self, source: RedisSource, *, quiet: float = 5.0, look: float = 15.0, prefix: str = "") -> None:
        self.counts = Counts()
        self._source = source
        self._client: Redis = source.client()
        self.prefix = prefix
        """What links of jobs begin with."""
        self._quiet = quiet
        self._look_every = look
        self._channels: dict[str, _Channel] = {}
        self._touched: set[str] = set()
        self._turned = asyncio.Event()
        self._reads: dict[tuple[str, int], _Read] = {}
        self._readers = asyncio.Semaphore(READERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = False
        self.draining = False
        """True when the process is shutting down: nobody is admitted any more."""
        self.known_epoch: str | None = None
        """The name of Redis's history as last read; ids of frames carry it."""

    @property
    def watchers(self) -> int:
        """How many followers there are."""
        return sum(len(channel.followers) for channel in self._channels.values())

    @property
    def channels(self) -> int:
        """How many channels are subscribed to, or about to be."""
        return len(self._channels)

    @property
    def listening(self) -> bool:
        """True while the subscription connection stands, as far as is known."""
        return self._listening

    def drain(self) -> None:
        """Close every follower, spread over `DRAIN_SECONDS`; nobody is admitted from now on. Call it in the loop."""
        if self.draining:
            return
        self.draining = True
        followers: list[Listener] = []
        for channel in self._channels.values():
            _settle(channel)  # whoever waits for it need not
            followers += channel.followers
            if channel.ear is not None:
                channel.ear.close()
        random.shuffle(followers)
        for follower in followers[:SLICE]:
            follower.close()
        if len(followers) > SLICE:
            self._start(self._close_rest(followers[SLICE:]), "hub-close")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        self._start(self._listen_for_ever(), "hub-listen")
        self._start(self._look_for_ever(), "hub-look")
        try:
            yield
        finally:
            self.drain()
            for channel in self._channels.values():
                for follower in tuple(channel.followers):
                    follower.close()
                if channel.waiting is not None:
                    channel.waiting.cancel()
            await cancel(*self._tasks)
            await self._client.aclose()

    async def subscribe(self, job_id: str, follower: Listener) -> None:
        """From now on the follower hears the job's events, until `leave`.

        Redis has acknowledged the subscription when this returns, or the hub is draining. Raises TimeoutError when
        Redis is away; `leave` in any case.
        """
        if self.draining:
            return
        name = keys.events(job_id)
        channel = self._channel(name)
        channel.followers[follower] = None
        await self._acknowledged(name, channel)

    def leave(self, job_id: str, follower: Listener) -> None:
        """The follower hears nothing any more; the last one that leaves ends the subscription."""
        name = keys.events(job_id)
        channel = self._channels.get(name)
        if channel is not None and channel.followers.pop(follower, self) is not self:
            self._release_idle(name, channel)

    async def overhear(self, name: str, ear: Ear) -> None:
        """From now on the ear hears all of a channel that is no job's, until `stop_overhearing`. As `subscribe`."""
        if self.draining:
            return
        channel = self._channel(name)
        channel.ear = ear
        await self._acknowledged(name, channel)

    def stop_overhearing(self, name: str) -> None:
        """The channel's ear hears nothing any more."""
        channel = self._channels.get(name)
        if channel is not None:
            channel.ear = None
            self._release_idle(name, channel)

    async def epoch(self) -> str:
        """The name of Redis's history. Raises redis-py's errors when it is not known yet and Redis is away."""
        if self.known_epoch is None:
            await self._learn_epoch()
        assert self.known_epoch is not None
        return self.known_epoch

    def suspect_fork(self) -> None:
        """A record is behind what Redis itself had said: some of its history is lost, so the epoch must change."""
        self._start(self._fork(), "hub-fork")

    def read(self, job_id: str, after: int) -> asyncio.Future[Page]:
        """Record and log behind a version; shield it, others may wait for it, too.

        Fails with JobNotFound, JobGone, and redis-py's errors when Redis is away.
        """
        return self._want(job_id, after).page

    def read_for(self, follower: Listener) -> None:
        """The same behind the follower's version; the answer goes to `read_done` or `read_failed`."""
        self._want(follower.job_id, follower.version).followers.append(follower)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _want(self, job_id: str, after: int) -> _Read:
        read = self._reads.get((job_id, after))
        if read is None:
            read = self._reads[job_id, after] = _Read()
            self._start(self._run(job_id, after), "hub-read")
        return read

    async def _run(self, job_id: str, after: int) -> None:
        async with self._readers:
            self.counts.reads += 1
            read = self._reads.pop((job_id, after))  # it begins: whoever comes now is too late for it
            try:
                page = await self._patiently(job_id, after)
            except Exception as error:
                read.page.set_exception(error)
                read.page.exception()  # there may be nobody who waits for it: that is no mistake
                async for follower in _sliced(read.followers):
                    follower.read_failed(error)
                return
            except BaseException:
                read.page.cancel()
                raise
        read.page.set_result(page)
        async for follower in _sliced(read.followers):
            follower.read_done(page)

    async def _patiently(self, job_id: str, after: int) -> Page:
        """A process that thousands come to at once is late for answers that have long arrived: it asks again."""
        for _ in range(READ_AGAIN):
            with contextlib.suppress(RedisTimeoutError, TimeoutError):
                return await self._page(job_id, after)
            if not self._listening:
                break
        return await self._page(job_id, after)

    async def _page(self, job_id: str, after: int) -> Page:
        epoch = await self.epoch()
        snapshot = await read_snapshot(self._client, job_id, after=after, limit=PAGE_EVENTS)
        if snapshot is not None:
            return Page(snapshot, after=after, epoch=epoch, prefix=self.prefix)
        if await was_purged(self._client, job_id):
            raise JobGone(f"Job {job_id} was purged")
        raise JobNotFound(f"There is no job {job_id[:64]!r}")

    # --- the epoch --------------------------------------------------------------------------------------------------

    async def _learn_epoch(self) -> None:
        self._set_epoch(await read_epoch(self._client))

    async def _fork(self) -> None:
        known = self.known_epoch
        try:
            if known is not None:
                self._set_epoch(await read_epoch(self._client, other_than=known))
        except Exception as error:
            if not is_unavailable(error):
                logger.exception("the epoch cannot be changed")

    def _set_epoch(self, epoch: str) -> None:
        known, self.known_epoch = self.known_epoch, epoch
        if known is None or known == epoch:
            return
        logger.warning("Redis has gone back in its history, or another one has taken over: all watchers begin anew")
        for channel in self._channels.values():
            channel.version = 0
            channel.held, channel.queue = None, None
            if channel.ear is not None:
                channel.ear.make_stale()
            for follower in tuple(channel.followers):
                follower.begin_anew()

    # --- telling ----------------------------------------------------------------------------------------------------

    def _hear_event(self, channel: _Channel, event: JobEvent) -> None:
        self.counts.heard += 1
        channel.version = event.version
        if self.known_epoch is None:
            return  # followers that join will read it
        frame = event_frame(event, self.known_epoch)
        if event.kind == "progress":
            self._hold(channel, frame)
            return
        if event.kind == "done" and (record := purged_record(event.data)) is not None:
            frame.data = job_json(record, prefix=self.prefix)
        self._release(channel)
        self._tell(channel, frame)

    def _hold(self, channel: _Channel, frame: Frame) -> None:
        held = channel.held
        if held is not None:
            if frame.since != held.version + 1:  # a gap: let it be seen
                self._tell(channel, held)
            else:
                frame.since = held.since
                self.counts.conflated += 1
        channel.held = frame
        if channel.waiting is None:
            loop = asyncio.get_running_loop()
            wait = channel.told_at + STATE_SECONDS - loop.time()
            if wait <= 0:
                self._release(channel)
            else:
                channel.waiting = loop.call_later(wait, self._release, channel)

    def _release(self, channel: _Channel) -> None:
        """What is held goes out."""
        if channel.waiting is not None:
            channel.waiting.cancel()
            channel.waiting = None
        frame, channel.held = channel.held, None
        if frame is not None:
            channel.told_at = asyncio.get_running_loop().time()
            self._tell(channel, frame)

    def _tell(self, channel: _Channel, frame: Frame) -> None:
        self.counts.told += len(channel.followers)
        if not channel.pumping and len(channel.followers) <= SLICE:
            for follower in tuple(channel.followers):
                follower.hear(frame)
            return
        if channel.queue is None:
            channel.queue = deque()
        queue = channel.queue
        last = queue[-1] if queue else None
        if frame.event == "progress" and last and last.event == "progress" and frame.since == last.version + 1:
            frame.since = queue.pop().since
            self.counts.conflated += 1
        queue.append(frame)
        if len(queue) > QUEUED:
            queue.clear()
            self.counts.overrun += 1
            channel.make_stale()
        elif not channel.pumping:
            channel.pumping = True
            self._start(self._pump(channel), "hub-pump")

    async def _pump(self, channel: _Channel) -> None:
        try:
            while channel.queue:
                frame = channel.queue.popleft()
                followers = tuple(channel.followers)
                for start in range(0, len(followers), SLICE):
                    for follower in followers[start : start + SLICE]:
                        follower.hear(frame)
                    await asyncio.sleep(0)
        finally:
            channel.pumping = False

    async def _close_rest(self, followers: list[Listener]) -> None:
        pause = DRAIN_SECONDS * SLICE / len(followers)
        for start in range(0, len(followers), SLICE):
            await asyncio.sleep(pause)
            for follower in followers[start : start + SLICE]:
                follower.close()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the connection ---------------------------------------------------------------------------------------------

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
        return channel

    async def _acknowledged(self, name: str, channel: _Channel) -> None:
        if not channel.asked:
            self._touch(name)
        if not channel.subscribed:
            if channel.acknowledged is None:
                channel.acknowledged = asyncio.get_running_loop().create_future()
                self._start(self._give_up(channel, channel.acknowledged), "hub-patience")
            await asyncio.shield(channel.acknowledged)

    async def _give_up(self, channel: _Channel, waiting: asyncio.Future[None]) -> None:
        # In turns: a loop that thousands keep busy is late itself. Each late turn counts once, and between two of them
        # it takes what has arrived.
        for _ in range(_TURNS):
            await asyncio.sleep(SUBSCRIBE_SECONDS / _TURNS)
            if waiting.done():
                return
        channel.acknowledged = None
        waiting.set_exception(TimeoutError("Redis does not acknowledge the subscription"))
        waiting.exception()  # there may be nobody left who waits for it

    def _release_idle(self, name: str, channel: _Channel) -> None:
        if not channel.idle:
            return
        if channel.asked:
            self._touch(name)
        else:
            del self._channels[name]

    def _touch(self, name: str) -> None:
        self._touched.add(name)
        self._turned.set()

    async def _listen_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        pause = _PAUSE_SECONDS
        while not self.draining:
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
        async with asyncio.timeout(self._quiet):  # its handshake has no deadline: subscribers have no read timeout
            subscription = await self._source.subscription(self._hear)
        try:
            async with asyncio.timeout(self._quiet):
                await self._learn_epoch()
            self._touched.update(self._channels)
            self._turned.set()
            self._listening = True
            # Not a TaskGroup: in Python before 3.11.3 its own cancellation can reach the task that holds it.
            tasks = [
                asyncio.create_task(subscription.ended(), name="hub-ended"),
                asyncio.create_task(self._steer(subscription), name="hub-steer"),
                asyncio.create_task(self._check(subscription), name="hub-check"),
            ]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
            finally:
                self._unsubscribed()
                await cancel(*tasks)
        finally:
            await subscription.aclose()

    def _unsubscribed(self) -> None:
        """The connection is gone, and its subscriptions with it."""
        self._listening = False
        for name, channel in list(self._channels.items()):
            channel.asked = False
            channel.subscribed = False
            if channel.idle:
                del self._channels[name]

    async def _steer(self, subscription: Subscription) -> None:
        """Make Redis's subscriptions those of the table, wherever it was touched."""
        while True:
            await self._turned.wait()
            self._turned.clear()
            touched, self._touched = self._touched, set()
            new, old = [], []
            for name in touched:
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if channel.idle:
                    del self._channels[name]
                    old.append(name)
                elif not channel.asked:
                    channel.asked = True
                    new.append(name)
            if old:
                await subscription.unsubscribe(*old)
            if new:
                await subscription.subscribe(*new)

    async def _check(self, subscription: Subscription) -> None:
        """Raises TimeoutError, which ends the connection, when Redis is silent and does not answer."""
        while True:
            subscription.heard = False
            await asyncio.sleep(self._quiet)
            if subscription.heard:
                continue
            await subscription.ping()
            for _ in range(_TURNS):  # see `_give_up`
                await asyncio.sleep(self._quiet / _TURNS)
                if subscription.heard:
                    break
            else:
                raise TimeoutError("Redis is silent")

    def _hear(self, kind: bytes, name: bytes, data: bytes) -> None:
        channel = self._channels.get(name.decode())
        if channel is None:
            return
        if kind == b"message":
            if channel.ear is not None:
                channel.ear.hear(data)
            elif channel.followers:
                self._hear_event(channel, parse_message(data))
        elif kind == b"subscribe":
            channel.subscribed = True
            _settle(channel)
            channel.make_stale()

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._look_every)
            try:
                await self._learn_epoch()
                await self._look()
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("the look for lost messages failed")

    async def _look(self) -> None:
        """Compare what was heard with the records. A message that is still under way costs a read, no more."""
        watched = [name.removeprefix(keys.EVENTS) for name, channel in self._channels.items() if channel.followers]
        for start in range(0, len(watched), LOOK_BATCH):
            job_ids = watched[start : start + LOOK_BATCH]
            for job_id, version in zip(job_ids, await read_versions(self._client, job_ids), strict=True):
                channel = self._channels.get(keys.events(job_id))
                if channel is None:
                    continue
                for follower in tuple(channel.followers):
                    # None, or behind what was read: it is gone, or history went back.
                    if version is None or not follower.version <= version <= max(channel.version, follower.version):
                        follower.make_stale()


def _settle(channel: _Channel) -> None:
    """Those who wait for the subscription need not any more."""
    waiting, channel.acknowledged = channel.acknowledged, None
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


async def _sliced(followers: Iterable[Listener]) -> AsyncIterator[Listener]:
    """Each of them, with others' turns in between."""
    for number, follower in enumerate(followers, start=1):
        yield follower
        if number % SLICE == 0:
            await asyncio.sleep(0)
