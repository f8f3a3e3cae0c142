"""One subscription connection for all watchers: it follows the table of watchers, and it comes back from everything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

from jobstream import keys
from jobstream.embedded import ChildRedis, ServerProgram
from jobstream.events import read_snapshot
from jobstream.redis import RedisSource, UrlSource
from jobstream_api.live.follow import Follower
from jobstream_api.live.frame import Frame
from jobstream_api.live.hub import SUBSCRIBE_SECONDS, Hub
from jobstream_api.live.page import Page
from tests.following import frames_of
from tests.lossy import LossySource
from tests.speaking_job import SpeakingJob

pytestmark = pytest.mark.timeout(60)

PATIENCE = 20.0


@pytest.fixture
async def hub(source: RedisSource) -> AsyncIterator[Hub]:
    hub = Hub(source)
    async with hub.running():
        yield hub


@pytest.fixture
async def real_hub(real_source: UrlSource) -> AsyncIterator[Hub]:
    hub = Hub(real_source)
    async with hub.running():
        yield hub


@pytest.fixture
def own_server(server_program: ServerProgram, tmp_path: Path) -> Iterator[ChildRedis]:
    """A server that a test may stop, freeze and start again."""
    with ChildRedis(server_program, tmp_path) as server:
        yield server


async def until(look: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Look until it is so: for what gives no sign of itself."""
    async with asyncio.timeout(PATIENCE):
        while True:
            seen = look()
            if seen is True or (seen is not False and await seen):
                return
            await asyncio.sleep(0.005)


async def subscribers(client: Redis, job_id: str) -> int:
    answer = cast("Awaitable[list[tuple[bytes, int]]]", client.pubsub_numsub(keys.events(job_id)))
    return (await answer)[0][1]


async def subscribed_jobs(client: Redis) -> list[bytes]:
    return await cast("Awaitable[list[bytes]]", client.pubsub_channels(keys.events("*")))


class Ear:
    """A listener that notes what it hears: versions, and None where it was made stale."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.version = 0
        self.closed = False
        self._heard: asyncio.Queue[int | None] = asyncio.Queue()

    def hear(self, frame: Frame) -> None:
        self._heard.put_nowait(frame.version)

    def make_stale(self) -> None:
        self._heard.put_nowait(None)

    begin_anew = make_stale

    def close(self) -> None:
        self.closed = True

    def read_done(self, page: Page) -> None:
        raise AssertionError("it asks for no read")

    def read_failed(self, error: Exception) -> None:
        raise error

    async def next(self) -> int | None:
        """The next that it hears."""
        async with asyncio.timeout(PATIENCE):
            return await self._heard.get()

    async def next_version(self) -> int:
        """The next version that it hears."""
        while (version := await self.next()) is None:
            pass
        return version


@contextlib.asynccontextmanager
async def watch(hub: Hub, job_id: str) -> AsyncIterator[Ear]:
    """An ear, subscribed."""
    ear = Ear(job_id)
    try:
        await hub.subscribe(job_id, ear)
        yield ear
    finally:
        hub.leave(job_id, ear)


class Watcher:
    """Follows a job to its end and notes the versions of the durable events."""

    def __init__(self, hub: Hub, job: SpeakingJob) -> None:
        self._frames = frames_of(Follower(hub, job.id))
        self.versions: list[int] = []
        self.joined = asyncio.Event()
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> Frame:
        async with contextlib.aclosing(self._frames) as frames:
            async for frame in frames:
                if frame.event == "snapshot":
                    self.joined.set()
                elif frame.id:
                    self.versions.append(int(frame.id.partition("-")[2]))
        return frame

    async def ended(self) -> list[int]:
        """The versions, once `done` has come."""
        async with asyncio.timeout(PATIENCE):
            assert (await self.task).event == "done"
        return self.versions


@contextlib.asynccontextmanager
async def watching(hub: Hub, job: SpeakingJob, *, watchers: int = 1) -> AsyncIterator[list[Watcher]]:
    """Watchers that have joined."""
    them = [Watcher(hub, job) for _ in range(watchers)]
    try:
        async with asyncio.timeout(PATIENCE):
            for watcher in them:
                await watcher.joined.wait()
        yield them
    finally:
        for watcher in them:
            watcher.task.cancel()
        await asyncio.wait([watcher.task for watcher in them])


async def logged(client: Redis, job: SpeakingJob) -> list[int]:
    snapshot = await read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    return [event.version for event in snapshot.events]


# --- who is subscribed ----------------------------------------------------------------------------------------------


async def test_two_hundred_watchers_of_a_job_share_one_subscription(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with watching(hub, job, watchers=200) as watchers:
        assert hub.watchers == 200
        assert hub.channels == 1
        assert await subscribers(client, job.id) == 1
        await job.log("to all")
        await job.finish()
        for watcher in watchers:
            assert await watcher.ended() == [1, 2, 3, 4]
    assert hub.watchers == 0


async def test_the_last_watcher_that_leaves_ends_the_subscription(client: ArqRedis, hub: Hub) -> None:
    async with watch(hub, "a"):
        async with watch(hub, "b"), watch(hub, "a"):
            assert await subscribers(client, "a") == await subscribers(client, "b") == 1
        await until(lambda: nobody_watches(client, "b"))
        assert await subscribers(client, "a") == 1
    await until(lambda: nobody_watches(client, "a"))
    assert await subscribed_jobs(client) == []
    assert hub.channels == 0


async def nobody_watches(client: Redis, job_id: str) -> bool:
    return await subscribers(client, job_id) == 0


async def test_a_job_that_nobody_watches_costs_nothing(client: ArqRedis, hub: Hub) -> None:
    watched, other = await SpeakingJob.start(client), await SpeakingJob.start(client)
    async with watch(hub, watched.id) as ear:
        await other.log("unheard")
        await watched.log("heard")
        assert await ear.next_version() == 3
        assert await subscribed_jobs(client) == [keys.events(watched.id).encode()]


async def test_a_watch_that_follows_on_a_leave_hears_everything(client: ArqRedis, hub: Hub) -> None:
    """At every distance between the two, so with the old UNSUBSCRIBE in every stage of its way."""
    job = await SpeakingJob.start(client)
    version = 2
    for steps in range(60):
        async with watch(hub, job.id):
            pass
        for _ in range(steps // 2):
            await asyncio.sleep(0)
        async with watch(hub, job.id) as ear:
            await job.log("after the watch stood")
            version += 1
            assert await ear.next_version() == version


@pytest.mark.parametrize("seed", [1, 2])
async def test_watchers_that_come_and_go_in_any_order_hear_what_is_said_while_they_watch(
    client: ArqRedis, hub: Hub, seed: int
) -> None:
    dice = random.Random(seed)
    jobs = [await SpeakingJob.start(client) for _ in range(3)]
    said = [asyncio.Lock() for _ in jobs]

    async def come_and_go() -> None:
        for _ in range(25):
            which = dice.randrange(len(jobs))
            with contextlib.suppress(TimeoutError):
                # Some are cut while they wait for the subscription.
                async with asyncio.timeout(dice.choice([0, 0.0005, PATIENCE])), watch(hub, jobs[which].id) as ear:
                    async with asyncio.timeout(PATIENCE):
                        async with said[which]:
                            await jobs[which].log("now")
                        await ear.next_version()
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(come_and_go())
    assert hub.watchers == 0
    await until(lambda: hub.channels == 0)

    async def nobody_listens() -> bool:  # the last goodbye may still be on its way
        return await subscribed_jobs(client) == []

    await until(nobody_listens)


async def test_a_cancelled_watcher_does_not_disturb_the_connection_of_the_others(
    real_client: ArqRedis, real_hub: Hub
) -> None:
    async def connections() -> set[str]:
        listed = await real_client.client_list(_type="pubsub")
        return {one["id"] for one in listed}

    async with watch(real_hub, "stays"):
        before = await connections()
        for steps in range(20):
            task = asyncio.create_task(contextlib.AsyncExitStack().enter_async_context(watch(real_hub, f"job-{steps}")))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        async with watch(real_hub, "later"):
            assert await connections() == before


# --- the connection is lost -----------------------------------------------------------------------------------------


async def test_killed_subscriptions_lose_nothing(real_client: ArqRedis, real_hub: Hub) -> None:
    job = await SpeakingJob.start(real_client)
    async with watching(real_hub, job, watchers=3) as watchers:
        for number in range(20):
            await job.log(f"{number} a", f"{number} b")
            if number % 5 == 0:
                killed = await cast("Awaitable[int]", real_client.client_kill_filter(_type="pubsub"))
                await job.log(f"{number} nobody listens")
                if number:
                    await until(lambda: real_hub.listening)
                else:
                    assert killed == 1
            await job.progress(number)
        await job.finish()
        for watcher in watchers:
            assert await watcher.ended() == await logged(real_client, job)


async def test_what_was_said_last_while_nobody_listened_comes_with_the_new_connection(
    real_source: UrlSource, real_client: ArqRedis
) -> None:
    source = LossySource(real_source)
    hub = Hub(source, look=1000)
    async with hub.running():
        job = await SpeakingJob.start(real_client)
        async with watching(hub, job) as (watcher,):
            source.drops = lambda event: True
            await job.finish()
            await until(lambda: [event.kind for event in source.dropped] == ["done"])
            await cast("Awaitable[int]", real_client.client_kill_filter(_type="pubsub"))
            assert await watcher.ended() == await logged(real_client, job)


async def test_a_restart_of_redis_loses_nothing_and_ends_no_watch(own_server: ChildRedis) -> None:
    source = UrlSource(own_server.url, kind="child")
    client, hub = source.client(), Hub(source)
    async with hub.running():
        job = await SpeakingJob.start(client)
        async with watching(hub, job, watchers=2) as watchers:
            await job.log("before")
            await asyncio.to_thread(own_server.stop)
            await until(lambda: not hub.listening)
            saying = asyncio.create_task(job.log("while it was away"))
            await asyncio.to_thread(own_server.start)
            await saying
            await job.finish()
            for watcher in watchers:
                assert await watcher.ended() == await logged(client, job)
    await client.aclose()


async def test_a_frozen_redis_is_noticed_and_nothing_is_lost(own_server: ChildRedis) -> None:
    source = UrlSource(own_server.url, kind="child")
    client, hub = source.client(), Hub(source, quiet=0.2)
    assert own_server.pid is not None
    async with hub.running():
        job = await SpeakingJob.start(client)
        async with watching(hub, job) as (watcher,):
            os.kill(own_server.pid, signal.SIGSTOP)
            try:
                await until(lambda: not hub.listening)
            finally:
                os.kill(own_server.pid, signal.SIGCONT)
            await job.log("nobody may be listening")
            await job.finish()
            assert await watcher.ended() == await logged(client, job)
    await client.aclose()


async def test_a_half_open_link_is_noticed_and_nothing_is_lost(
    real_source: UrlSource, real_client: ArqRedis, redis_server: ChildRedis, tmp_path: Path
) -> None:
    async with Wire(redis_server, tmp_path / "wire.sock") as wire:
        hub = Hub(UrlSource(wire.url, kind="child"), quiet=0.2)
        async with hub.running():
            job = await SpeakingJob.start(real_client)
            async with watching(hub, job) as (watcher,):
                wire.cut()  # both ends think that it stands
                await job.log("swallowed")
                await until(lambda: not hub.listening)
                await job.finish()
                assert await watcher.ended() == await logged(real_client, job)


class Wire:
    """A link to a server, at a path of its own, that can be cut without either end being told."""

    def __init__(self, server: ChildRedis, path: Path) -> None:
        self._target = server.url.removeprefix("unix://")
        self._path = path
        self._whole = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def cut(self) -> None:
        """What goes over the connections that are open now is lost."""
        self._whole.clear()
        for pump in self._pumps:
            pump.cancel()

    async def __aenter__(self) -> Wire:
        server = await asyncio.start_unix_server(self._connect, self._path)
        self._stack.callback(server.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._stack.aclose()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, there_writer]
        for source, target in ((reader, there_writer), (there_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, target)))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()


async def test_a_watch_while_redis_is_away_fails_soon_and_leaves_nothing_behind(tmp_path: Path) -> None:
    hub = Hub(UrlSource(f"unix://{tmp_path}/nobody.sock", kind="child"))
    async with hub.running():
        began = time.monotonic()
        watches = [contextlib.AsyncExitStack().enter_async_context(watch(hub, f"job-{one}")) for one in range(3)]
        answers = await asyncio.gather(*watches, return_exceptions=True)
        assert [type(answer) for answer in answers] == [TimeoutError] * 3
        assert time.monotonic() - began < SUBSCRIBE_SECONDS + 2
        assert (hub.watchers, hub.channels) == (0, 0)


async def test_an_outage_is_told_once_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(UrlSource(f"unix://{tmp_path}/nobody.sock", kind="child"))
    with caplog.at_level(logging.WARNING, "jobstream.hub"):
        async with hub.running():
            with pytest.raises(TimeoutError):
                async with watch(hub, "job"):
                    pass
    assert len(caplog.records) == 1


# --- the end of the process -----------------------------------------------------------------------------------------


async def test_a_drain_closes_every_feed_and_opens_no_more(client: ArqRedis, hub: Hub) -> None:
    async with watch(hub, "a") as one, watch(hub, "b") as two:
        hub.drain()
        assert one.closed
        assert two.closed
        async with watch(hub, "c"):
            assert await subscribers(client, "c") == 0


async def test_a_drain_ends_the_wait_for_a_subscription(tmp_path: Path) -> None:
    hub = Hub(UrlSource(f"unix://{tmp_path}/nobody.sock", kind="child"))
    async with hub.running(), contextlib.AsyncExitStack() as stack:
        waiting = asyncio.create_task(stack.enter_async_context(watch(hub, "job")))
        await asyncio.sleep(0)
        hub.drain()
        assert (await waiting).closed


async def test_a_hub_that_stops_leaves_no_connection(real_source: UrlSource, real_client: ArqRedis) -> None:
    hub = Hub(real_source)
    async with hub.running(), watch(hub, "job"):
        assert await subscribers(real_client, "job") == 1
    await until(lambda: nobody_watches(real_client, "job"))
    assert [one for one in asyncio.all_tasks() if one.get_name().startswith("hub")] == []


async def test_a_hub_ends_although_a_cancellation_was_swallowed(
    source: RedisSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    async def swallow(client: Redis, job_ids: list[str]) -> list[int | None]:
        looked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return [None for _ in job_ids]

    monkeypatch.setattr("jobstream_api.live.hub.read_versions", swallow)
    hub = Hub(source, look=0.01)
    async with hub.running(), watch(hub, "job"):
        await looked.wait()
    assert [one for one in asyncio.all_tasks() if one.get_name().startswith("hub")] == []
