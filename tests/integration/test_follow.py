"""Whatever happens between Redis and a watcher: nothing is lost, nothing comes twice, and the end is the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

import msgspec
import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobstream import events, keys
from jobstream.errors import JobGone, JobNotFound
from jobstream.events import EventId, Snapshot, parse_event_id, read_snapshot
from jobstream.job import JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream_api.live import follow
from jobstream_api.live import hub as hub_module
from jobstream_api.live.follow import Follower
from jobstream_api.live.frame import Frame
from jobstream_api.live.hub import Hub
from tests.following import OPENED, frames_of
from tests.lossy import LossySource
from tests.speaking_job import SpeakingJob

pytestmark = pytest.mark.timeout(60)

EPOCH = "0123abcd"


@pytest.fixture(autouse=True)
def _epoch(source: RedisSource) -> None:
    """A known one."""
    with source.sync_client() as client:
        client.set(keys.EPOCH, EPOCH)


@pytest.fixture
def lossy(source: RedisSource) -> LossySource:
    return LossySource(source)


@pytest.fixture
async def hub(lossy: LossySource) -> AsyncIterator[Hub]:
    hub = Hub(lossy)
    async with hub.running():
        yield hub


@pytest.fixture
async def hub_that_looks(lossy: LossySource) -> AsyncIterator[Hub]:
    hub = Hub(lossy, look=0.05)
    async with hub.running():
        yield hub


@contextlib.asynccontextmanager
async def following(hub: Hub, job_id: str, *, after: str | None = None) -> AsyncIterator[AsyncGenerator[Frame, None]]:
    """The frames of a follower that has joined."""
    follower = Follower(hub, job_id, after=parse_event_id(after) if after else None)
    async with contextlib.aclosing(frames_of(follower)) as frames:
        assert await anext(frames) is OPENED
        yield frames


async def take(frames: AsyncIterator[Frame], until: Callable[[Frame], bool] | None = None) -> list[Frame]:
    """Frames up to and with the one wanted; by default to their end."""
    taken = []
    async for frame in frames:
        taken.append(frame)
        if until is not None and until(frame):
            break
    return taken


async def all_of(hub: Hub, job_id: str, *, after: str | None = None) -> list[Frame]:
    async with following(hub, job_id, after=after) as frames:
        return await take(frames)


def says(message: str) -> Callable[[Frame], bool]:
    return lambda frame: frame.event in ("log", "chunk") and message.encode() in frame.data


def is_snapshot(frame: Frame) -> bool:
    return frame.event == "snapshot"


def durable(frames: Iterable[Frame]) -> list[tuple[str, str]]:
    """What the log keeps: kind and id."""
    return [(frame.event, frame.id) for frame in frames if frame.id and frame.event != "snapshot"]


async def logged(client: Redis, job_id: str, *, after: int = 0) -> list[tuple[str, str]]:
    """The same, as the log has it."""
    snapshot = await read_snapshot(client, job_id, after=after)
    assert snapshot is not None
    return [(event.kind, str(EventId(EPOCH, event.version))) for event in snapshot.events]


def versions(frames: Iterable[Frame]) -> list[int]:
    """Those of all ids, snapshots' too."""
    ids = [parse_event_id(frame.id) for frame in frames if frame.id]
    return [event_id.version for event_id in ids if event_id]


def body(frame: Frame) -> Any:
    return msgspec.json.decode(frame.data)


def increase(numbers: list[int]) -> bool:
    return all(left < right for left, right in itertools.pairwise(numbers))


# --- the whole of it ----------------------------------------------------------------------------------------------


async def test_a_watcher_from_the_start_sees_the_whole_log_and_the_job_at_both_ends(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as frames:
        first = await take(frames, lambda frame: b"running" in frame.data and frame.event == "status")
        await job.log("one", "two")
        await job.chunk("part")
        await job.progress(3)
        await job.finish()
        rest = await take(frames)
    assert (first[0].event, body(first[0])["status"]) == ("snapshot", "running")
    assert (rest[-1].event, body(rest[-1])["result"], body(rest[-1])["done"]) == ("done", 42, True)
    assert durable(first + rest) == await logged(client, job.id)
    assert increase(versions(first + rest))


async def test_a_finished_job_is_told_from_the_log_alone(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    await job.log("one")
    await job.finish(JobStatus.FAILED)
    frames = await all_of(hub, job.id)
    assert [frame.event for frame in frames] == ["snapshot", "status", "status", "log", "done"]
    assert durable(frames) == await logged(client, job.id)


async def test_a_resumption_at_any_id_of_a_finished_job_gives_exactly_the_rest(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    for number in range(4):
        await job.log(f"a{number}", f"b{number}")
        await job.progress(number)
        await job.chunk(f"c{number}")
    await job.finish()
    whole = await logged(client, job.id)
    snapshot, *_ = await all_of(hub, job.id)
    assert durable(await all_of(hub, job.id, after=snapshot.id)) == whole
    for position, (_, event_id) in enumerate(whole[:-1]):
        rest = await all_of(hub, job.id, after=event_id)
        assert not any(map(is_snapshot, rest))
        assert durable(rest) == whole[position + 1 :]
    last = parse_event_id(whole[-1][1])
    assert [frame async for frame in frames_of(Follower(hub, job.id, after=last))] == []


async def test_a_long_log_is_read_in_pages(client: ArqRedis, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PAGE_EVENTS", 7)
    job = await SpeakingJob.start(client)
    await job.log(*(f"line {number}" for number in range(40)))
    await job.progress(40)
    async with following(hub, job.id) as frames:
        read = await take(frames, says("line 39"))
        await job.finish()
        read += await take(frames)
    assert durable(read) == await logged(client, job.id)
    assert sum(map(is_snapshot, read)) == 1


# --- the join -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the read", "after the read"])
async def test_an_event_between_subscription_and_snapshot_comes_once(
    client: ArqRedis, hub: Hub, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    job = await SpeakingJob.start(client)
    said = False

    async def read(client: Redis, job_id: str, *, after: int, limit: int | None) -> Snapshot | None:
        nonlocal said
        if moment == "after the read":
            snapshot = await events.read_snapshot(client, job_id, after=after, limit=limit)
        if not said:
            said = True
            await job.log("meanwhile")
            await job.progress(1)
        if moment == "before the read":
            snapshot = await events.read_snapshot(client, job_id, after=after, limit=limit)
        return snapshot

    monkeypatch.setattr(hub_module, "read_snapshot", read)
    async with following(hub, job.id) as frames:
        seen = await take(frames, says("meanwhile"))
        await job.finish()
        seen += await take(frames)
    assert durable(seen) == await logged(client, job.id)
    assert increase(versions(seen))


async def test_an_event_that_was_read_and_is_heard_later_comes_once(
    client: ArqRedis, hub: Hub, lossy: LossySource
) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as early, following(hub, job.id) as late:
        seen = await take(early, lambda frame: b"running" in frame.data and frame.event == "status")
        lossy.open.clear()  # published, and kept from the hub
        await job.log("held", "held back")
        lates = await take(late, says("held back"))  # reads the log
        lossy.open.set()
        await job.finish()
        seen += await take(early)
        lates += await take(late)
    assert durable(seen) == durable(lates) == await logged(client, job.id)


# --- messages that never come -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [{3}, {4}, {3, 4}, {5}, {3, 4, 5, 6}, {4, 7}])
async def test_a_gap_is_filled_from_the_log(client: ArqRedis, hub: Hub, lossy: LossySource, lost: set[int]) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as frames:
        seen = await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        lossy.drops = lambda event: event.version in lost
        await job.log("3", "4")
        await job.progress(5)
        await job.log("6", "7", "8")
        await job.finish()
        seen += await take(frames)
    assert {event.version for event in lossy.dropped} == lost
    assert durable(seen) == await logged(client, job.id)


@pytest.mark.parametrize("last", ["log", "progress", "done"])
async def test_a_lost_last_message_is_found(
    client: ArqRedis, hub_that_looks: Hub, lossy: LossySource, last: str
) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub_that_looks, job.id) as frames:
        seen = await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        lossy.drops = lambda event: True
        say = {"log": job.log("last"), "progress": job.progress(9), "done": job.finish()}
        for kind, saying in say.items():
            if kind == last:
                await saying
            else:
                saying.close()
        seen += await take(frames, lambda frame: frame.event == last)
    assert [event.kind for event in lossy.dropped] == [last]
    assert durable(seen) == await logged(client, job.id)


async def test_a_quiet_job_is_not_read_again_and_again(
    client: ArqRedis, hub_that_looks: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, reads = asyncio.Semaphore(0), 0
    job = await SpeakingJob.start(client)

    async def look(client: Redis, job_ids: list[str]) -> list[int | None]:
        looks.release()
        return await events.read_versions(client, job_ids)

    async def read(client: Redis, job_id: str, *, after: int, limit: int | None) -> Snapshot | None:
        nonlocal reads
        reads += 1
        return await events.read_snapshot(client, job_id, after=after, limit=limit)

    monkeypatch.setattr("jobstream_api.live.hub.read_versions", look)
    monkeypatch.setattr(hub_module, "read_snapshot", read)
    async with following(hub_that_looks, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        await job.log("heard")
        await take(frames, says("heard"))
        read_so_far = reads
        pending = asyncio.ensure_future(anext(frames))
        for _ in range(4):
            await looks.acquire()
        assert reads == read_so_far
        await job.log("again")
        assert says("again")(await pending)


async def test_frames_outlive_a_redis_that_is_away_for_a_while(
    client: ArqRedis, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "AWAY_SECONDS", 0.01)
    failures: list[Exception] = []

    async def read(client: Redis, job_id: str, *, after: int, limit: int | None) -> Snapshot | None:
        if failures:
            raise failures.pop()
        return await events.read_snapshot(client, job_id, after=after, limit=limit)

    monkeypatch.setattr(hub_module, "read_snapshot", read)
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as frames:
        failures += [RedisConnectionError(), RedisTimeoutError(), TimeoutError(), BusyLoadingError()]
        for follower in hub._channels[keys.events(job.id)].followers:
            follower.make_stale()
        await job.log("one")
        seen = await take(frames, says("one"))
        await job.finish()
        seen += await take(frames)
    assert durable(seen) == await logged(client, job.id)


# --- watchers that are slow ---------------------------------------------------------------------------------------


async def test_a_slow_watcher_catches_up_and_holds_up_nobody(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as slow, following(hub, job.id) as quick:
        slows = await take(slow, lambda frame: frame.id == f"{EPOCH}-2")
        for number in range(4):  # the slow one takes nothing of all this
            await job.log(*(f"{number} {line}" for line in range(follow.WAITING_FRAMES // 2)))
            await job.progress(number)
        await job.log("last")
        quicks = await take(quick, says("last"))
        waiting = [
            len(one._waiting) for one in hub._channels[keys.events(job.id)].followers if isinstance(one, Follower)
        ]
        assert max(waiting) <= follow.WAITING_FRAMES
        await job.finish()
        quicks += await take(quick)
        slows += await take(slow)
    assert durable(slows) == durable(quicks) == await logged(client, job.id)


async def test_progress_is_conflated_and_nothing_else(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as frames:
        seen = await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        async with following(hub, job.id) as witness:
            for number in range(50):
                await job.progress(number)
            await job.log("between")
            for number in range(50, 100):
                await job.progress(number)
            await job.chunk("after")
            await take(witness, says("after"))  # so the hub has heard it all
        seen += await take(frames, says("after"))
        await job.finish()
        seen += await take(frames)
    told = [body(frame)["current"] for frame in seen if frame.event == "progress"]
    assert set(told) == {99}  # the latest is enough: what the first log line came behind is in it
    assert len(told) <= 2  # the end is read from the record, with the progress there
    assert durable(seen) == await logged(client, job.id)
    assert increase(versions(seen))


# --- ids that do not fit ------------------------------------------------------------------------------------------


async def test_an_id_that_was_trimmed_away_gets_one_snapshot_and_the_log_that_is_left(
    client: ArqRedis, hub: Hub
) -> None:
    job = await SpeakingJob.start(client)
    await job.log(*(f"line {number}" for number in range(20)))
    await client.ltrim(keys.log(job.id), -5, -1)  # type: ignore[misc]
    left = await logged(client, job.id)
    assert len(left) == 5
    async with following(hub, job.id, after=f"{EPOCH}-3") as frames:
        seen = await take(frames, says("line 19"))
        await job.finish()
        seen += await take(frames)
    assert [frame.event for frame in seen].count("snapshot") == 1
    assert is_snapshot(seen[0])
    assert durable(seen) == await logged(client, job.id)
    assert increase(versions(seen))
    assert durable(await all_of(hub, job.id, after=seen[0].id)) == durable(seen)
    again = await all_of(hub, job.id, after=left[0][1])
    assert not any(map(is_snapshot, again))
    assert durable(again) == durable(seen)[1:]


async def test_a_log_that_is_gone_is_not_told_again_and_again(client: ArqRedis, hub_that_looks: Hub) -> None:
    job = await SpeakingJob.start(client)
    await client.delete(keys.log(job.id))
    async with following(hub_that_looks, job.id, after=f"{EPOCH}-1") as frames:
        first = await anext(frames)
        assert (first.event, first.id) == ("snapshot", f"{EPOCH}-2")
        await job.log("on")
        assert [frame.event for frame in await take(frames, says("on"))] == ["log"]


@pytest.mark.parametrize("after", ["deadbeef-1", "deadbeef-3", f"{EPOCH}-4000"])
async def test_an_id_of_another_history_gets_a_snapshot_and_the_whole_log(
    client: ArqRedis, hub: Hub, after: str
) -> None:
    job = await SpeakingJob.start(client)
    await job.log("one")
    async with following(hub, job.id, after=after) as frames:
        seen = await take(frames, says("one"))
        await job.finish()
        seen += await take(frames)
    assert is_snapshot(seen[0])
    assert [frame.event for frame in seen].count("snapshot") == 1
    assert durable(seen) == await logged(client, job.id)
    assert increase(versions(seen))


async def test_a_history_that_goes_back_under_a_watcher_begins_anew(client: ArqRedis, hub_that_looks: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub_that_looks, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        await job.log("lost", "lost", "lost")
        await take(frames, lambda frame: frame.id == f"{EPOCH}-5")
        await client.flushall()
        again = await SpeakingJob.start(client, job_id=job.id)
        seen = await take(frames, is_snapshot)
        await again.finish()
        seen += await take(frames)
    assert [(kind, versions_of(event_id)) for kind, event_id in durable(seen)] == [
        (kind, versions_of(event_id)) for kind, event_id in await logged(client, job.id)
    ]
    assert {frame.id.partition("-")[0] for frame in seen if frame.id} != {EPOCH}


def versions_of(event_id: str) -> str:
    """Its part behind the epoch."""
    return event_id.partition("-")[2]


async def test_a_job_that_runs_again_is_followed_beyond_its_first_end(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    await job.finish(JobStatus.FAILED)
    async with client.pipeline() as pipe:  # as a retry would
        pipe.hset(keys.record(job.id), mapping={"status": "queued", "version": 4})
        pipe.rpush(keys.log(job.id), '4 status 1 {"status":"queued"}')
        pipe.publish(keys.events(job.id), '4 status 1 {"status":"queued"}')
        await pipe.execute()
    async with following(hub, job.id, after=f"{EPOCH}-2") as frames:
        first, second = await take(frames, lambda frame: frame.id == f"{EPOCH}-4")
    assert (first.event, body(first)) == ("status", {"status": "failed"})
    assert (second.event, body(second)) == ("status", {"status": "queued"})


# --- jobs that are not there --------------------------------------------------------------------------------------


async def test_an_unknown_job_is_refused_before_anything_is_sent(client: ArqRedis, hub: Hub) -> None:
    with pytest.raises(JobNotFound):
        await all_of(hub, "nobody")
    assert hub.watchers == 0


async def test_a_job_that_is_purged_while_it_runs_ends_for_its_watchers_like_any_other(
    client: ArqRedis, hub: Hub
) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        await job.log("é")
        await Queue(client).purge(job.id)
        await job.finish(JobStatus.CANCELLED)
        rest = await take(frames)
    assert [frame.event for frame in rest] == ["log", "status", "done"]
    assert (body(rest[-1])["id"], body(rest[-1])["status"]) == (job.id, "cancelled")
    with pytest.raises(JobGone):
        await all_of(hub, job.id)


async def test_a_job_that_is_purged_while_it_waits_ends_for_its_watchers_like_any_other(
    client: ArqRedis, hub: Hub
) -> None:
    job = await Queue(client).submit("speak", {"text": "é"})
    async with following(hub, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-1" and frame.event == "status")
        outcome = await Queue(client).purge(job.id)
        (done,) = await take(frames)
    assert (done.event, body(done)["status"], body(done)["error"]["code"]) == ("done", "cancelled", "cancelled")
    assert outcome.job.status is JobStatus.CANCELLED
    with pytest.raises(JobGone):
        await all_of(hub, job.id)


async def test_a_purge_that_was_not_heard_ends_the_frames(
    client: ArqRedis, hub_that_looks: Hub, lossy: LossySource
) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub_that_looks, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        lossy.drops = lambda event: True
        await Queue(client).purge(job.id)
        await job.finish(JobStatus.CANCELLED)
        with pytest.raises(JobGone):
            await take(frames)
    with pytest.raises(JobGone):
        await all_of(hub_that_looks, job.id)


async def test_a_record_that_vanishes_ends_the_frames(client: ArqRedis, hub_that_looks: Hub) -> None:
    job = await SpeakingJob.start(client)
    async with following(hub_that_looks, job.id) as frames:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        await client.flushall()
        with pytest.raises(JobNotFound):
            await take(frames)


# --- ends ---------------------------------------------------------------------------------------------------------


async def test_a_drain_ends_all_frames_and_those_that_come_later(client: ArqRedis, hub: Hub) -> None:
    job, done = await SpeakingJob.start(client), await SpeakingJob.start(client)
    await done.finish()
    async with following(hub, job.id) as frames, following(hub, job.id) as others:
        await take(frames, lambda frame: frame.id == f"{EPOCH}-2")
        hub.drain()
        assert [frame.event for frame in await take(frames)] == ["retry"]
        assert (await take(others))[-1].event == "retry"
    for job_id in (job.id, done.id):
        assert [frame.event for frame in await all_of(hub, job_id)] == ["retry"]
    with pytest.raises(JobNotFound):
        await all_of(hub, "nobody")


async def test_a_follower_cancelled_anywhere_leaves_nothing_behind(client: ArqRedis, hub: Hub) -> None:
    job = await SpeakingJob.start(client)
    await job.log("one")
    cancelled = 0
    for steps in range(200):
        task = asyncio.create_task(all_of(hub, job.id))
        for _ in range(steps):
            await asyncio.sleep(0)
        while not task.done():  # as anyio does: before Python 3.12, `asyncio.wait_for` in redis-py may swallow one
            task.cancel()
            await asyncio.sleep(0)
        cancelled += task.cancelled()
        assert hub.watchers == 0
    assert cancelled == 200
    async with asyncio.timeout(10):
        while hub.channels:  # noqa: ASYNC110  # the hub gives up a subscription a moment later
            await asyncio.sleep(0)
    assert hub.listening
    assert not client.connection_pool._in_use_connections


# --- all of it at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_watchers_that_are_cut_and_come_back_have_the_whole_log(
    client: ArqRedis, hub_that_looks: Hub, lossy: LossySource, seed: int
) -> None:
    dice = random.Random(seed)
    lossy.drops = lambda event: dice.random() < 0.05
    jobs = [await SpeakingJob.start(client) for _ in range(5)]

    async def speak(job: SpeakingJob) -> None:
        for number in range(dice.randrange(20, 60)):
            match dice.randrange(3):
                case 0:
                    await job.log(*(f"{number}.{line}" for line in range(dice.randrange(1, 8))))
                case 1:
                    await job.chunk(f"{number}")
                case _:
                    await job.progress(number)
        await job.finish()

    async def watch(job: SpeakingJob) -> list[tuple[str, str]]:
        """Cut at random points, and resumed by the last id that was seen, until the answer is that there is no more."""
        seen: list[tuple[str, str]] = []
        after: str | None = None
        while True:
            last = parse_event_id(after) if after else None
            follower = Follower(hub_that_looks, job.id, after=last)
            patience, opened = dice.randrange(1, 30), False
            async with contextlib.aclosing(frames_of(follower)) as frames:
                async for frame in frames:
                    opened = True
                    patience -= 1
                    if patience == 0:
                        break
                    seen += durable([frame])
                    after = frame.id or after
            if not opened:
                return seen

    async with asyncio.TaskGroup() as group:
        watchers = [(job, group.create_task(watch(job))) for job in jobs for _ in range(6)]
        for job in jobs:
            group.create_task(speak(job))
    for job, watcher in watchers:
        assert watcher.result() == await logged(client, job.id)
    assert hub_that_looks.watchers == 0
    assert lossy.dropped
