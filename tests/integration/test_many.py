"""Who follows many jobs misses nothing, gets nothing twice, and resumes by one number, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

from jobstream import journal, keys, store
from jobstream.embedded import ChildRedis, ServerProgram
from jobstream.events import parse_event_id, read_snapshot
from jobstream.job import JobStatus, Record
from jobstream.journal import want
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource, UrlSource
from jobstream.store import JobFilter
from jobstream_api.live import many, tape
from jobstream_api.live.frame import Frame
from jobstream_api.live.hub import Hub
from jobstream_api.live.many import ManyFollower
from jobstream_api.live.tape import Tape
from tests.following import OPENED, frames_of
from tests.lossy import LossySource
from tests.speaking_job import SpeakingJob

pytestmark = pytest.mark.timeout(60)

PATIENCE = 20.0
EVERYTHING = JobFilter()


class Api:
    """What of an API process matters here: a hub and a tape."""

    def __init__(self, source: RedisSource, *, look: float = 15.0) -> None:
        self.client = source.client()
        self.hub = Hub(source)
        self.tape = Tape(self.client, self.hub, look=look)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Api]:
        async with self.hub.running():
            try:
                yield self
            finally:
                await self.tape.aclose()
                await self.client.aclose()

    @contextlib.asynccontextmanager
    async def following(
        self, wanted: JobFilter = EVERYTHING, *, after: str | None = None
    ) -> AsyncIterator[AsyncGenerator[Frame, None]]:
        """The frames of a follower that has joined."""
        follower = ManyFollower(self.tape, wanted, after=parse_event_id(after) if after else None)
        async with contextlib.aclosing(frames_of(follower)) as frames:
            assert await anext(frames) is OPENED
            yield frames


@pytest.fixture
def lossy(source: RedisSource) -> LossySource:
    return LossySource(source)


@pytest.fixture
async def api(lossy: LossySource) -> AsyncIterator[Api]:
    async with Api(lossy).running() as api:
        yield api


@pytest.fixture
async def api_that_looks(lossy: LossySource) -> AsyncIterator[Api]:
    async with Api(lossy, look=0.05).running() as api:
        yield api


@pytest.fixture
def own_server(server_program: ServerProgram, tmp_path: Path) -> Iterable[ChildRedis]:
    with ChildRedis(server_program, tmp_path) as server:
        yield server


async def take(frames: AsyncIterator[Frame], until: Callable[[Frame], bool]) -> list[Frame]:
    """Frames up to and with the one wanted."""
    taken = []
    async with asyncio.timeout(PATIENCE):
        async for frame in frames:
            taken.append(frame)
            if until(frame):
                return taken
    raise AssertionError(f"the stream ended: {taken}")


def about(frame: Frame) -> dict[str, Any]:
    return cast("dict[str, Any]", msgspec.json.decode(frame.data))


def is_event(kind: str, job: SpeakingJob | None = None) -> Callable[[Frame], bool]:
    return lambda frame: frame.event == kind and (job is None or about(frame)["job"] == job.id)


def says(message: str) -> Callable[[Frame], bool]:
    return lambda frame: frame.event in ("log", "chunk") and f'"{message}"'.encode() in frame.data


listed = is_event("listed")


def durable(frames: Iterable[Frame]) -> list[tuple[str, str]]:
    """Job and kind of all that has an id, but of what says only where to resume."""
    return [(about(frame)["job"], frame.event) for frame in frames if frame.id and about(frame)["job"]]


def last_id(frames: Iterable[Frame]) -> str:
    return [frame.id for frame in frames if frame.id][-1]


def ids(frames: Iterable[Frame]) -> list[str]:
    return [frame.id for frame in frames if frame.id]


async def log_of(client: Redis, job: SpeakingJob) -> list[str]:
    snapshot = await read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    return [event.kind for event in snapshot.events]


async def noise(client: Redis) -> list[SpeakingJob]:
    """Three jobs that say something and end, one after the other."""
    jobs = [await SpeakingJob.start(client) for _ in range(3)]
    for number in range(3):
        for job in jobs:
            await job.log(f"{number}")
            await job.progress(number)
    for job in jobs:
        await job.finish()
    return jobs


async def next_millisecond(client: Redis) -> None:
    """By Redis's clock."""
    seconds, microseconds = await client.time()
    while await client.time() < (seconds, microseconds + 1000):
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)


# --- the whole of it ----------------------------------------------------------------------------------------------


async def test_a_fresh_stream_shows_the_jobs_that_are_not_done_and_then_all_that_happens(
    client: ArqRedis, api: Api
) -> None:
    ended = await SpeakingJob.start(client)
    await ended.finish()
    old = await SpeakingJob.start(client)
    await old.log("before")
    await next_millisecond(client)  # else their ids decide which comes first
    young = await Queue(client).submit("speak", {}, options=SubmitOptions(delay=100))
    async with api.following() as frames:
        first = await take(frames, listed)
        assert [(frame.event, about(frame)["job"]) for frame in first] == [
            ("snapshot", young.id),
            ("snapshot", old.id),
            ("listed", None),
        ]
        assert about(first[1])["data"]["status"] == "running"
        assert about(first[2])["data"] == {"jobs": 2, "more": False}
        assert [frame.id is not None for frame in first] == [False, False, True]
        await old.log("after")
        new = await SpeakingJob.start(client)
        await old.progress(3)
        await new.log("hello")
        await old.finish()
        rest = await take(frames, is_event("done", old))
    assert durable(rest) == [
        (old.id, "log"),
        (new.id, "status"),
        (new.id, "status"),
        (new.id, "log"),
        (old.id, "done"),
    ]
    assert about(rest[-1])["data"]["result"] == 42
    assert about(rest[-1])["task"] == "speak"
    assert [about(frame)["data"]["current"] for frame in rest if frame.event == "progress"] == [3]
    assert [frame.id for frame in rest if frame.event == "progress"] == [None]


async def test_with_no_job_at_all_there_is_an_id_to_resume_from(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        (first,) = await take(frames, listed)
    assert about(first)["data"] == {"jobs": 0, "more": False}
    assert first.id
    await noise(client)
    async with api.following(after=first.id) as frames:
        assert len(durable(await take(frames, is_event("done")))) > 9


async def test_a_resumption_at_any_id_gives_exactly_the_rest(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        first = await take(frames, listed)
        jobs = await noise(client)
        seen = await take(frames, is_event("done", jobs[-1]))
        whole = ids([*first, *seen])
        for position, event_id in enumerate(whole[:-1]):
            async with api.following(after=event_id) as again:
                rest = await take(again, is_event("done", jobs[-1]))
            assert ids(rest) == whole[position + 1 :]
            assert not any(map(is_event("snapshot"), rest))
    assert len(whole) == 1 + 3 * 6


async def test_a_resumption_behind_the_last_event_waits_for_the_next_one(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        first = await take(frames, listed)
        job = await SpeakingJob.start(client)
        await job.log("x")
        last = last_id([*first, *await take(frames, says("x"))])
        async with api.following(after=last) as again:
            await job.log("y")
            assert durable(await take(again, says("y"))) == [(job.id, "log")]


@pytest.mark.parametrize("after", ["00000000-3", "{generation}-999999"])
async def test_an_id_of_another_history_or_of_the_future_begins_with_snapshots(
    client: ArqRedis, api: Api, after: str
) -> None:
    job = await SpeakingJob.start(client)
    generation = (await want(client, history=await api.hub.epoch())).generation
    async with api.following(after=after.format(generation=generation)) as frames:
        assert [frame.event for frame in await take(frames, listed)] == ["snapshot", "listed"]
        await job.log("x")
        await take(frames, says("x"))


async def test_a_watcher_that_comes_from_a_process_that_was_ahead_gets_nothing_twice(
    client: ArqRedis, source: RedisSource, api: Api, lossy: LossySource
) -> None:
    async with Api(source).running() as ahead, ahead.following() as frames, api.following() as behind:
        await take(frames, listed)
        await take(behind, listed)
        lossy.open.clear()
        jobs = await noise(client)
        last = last_id(await take(frames, is_event("done", jobs[1])))
        async with api.following(after=last) as again:
            lossy.open.set()
            assert durable(await take(again, is_event("done"))) == [(jobs[2].id, "done")]


async def test_an_id_that_was_trimmed_away_begins_with_snapshots(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        (first,) = await take(frames, listed)
        job = await SpeakingJob.start(client)
        await take(frames, is_event("status", job))
        await cast("Awaitable[int]", client.hincrby(keys.JOURNAL, "bytes", 32 * 1024**2))
        await job.log("x")  # all but this is trimmed
        await take(frames, says("x"))
        async with api.following(after=first.id) as again:
            assert [frame.event for frame in await take(again, listed)] == ["snapshot", "listed"]


async def test_a_join_waits_for_one_page_only(client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    async def replay(client: Redis, place: journal.Place, *, limit: int) -> journal.JournalPage | None:
        nonlocal reads
        reads += 1
        return await journal.replay(client, place, limit=limit)

    async with api.following() as frames:
        (first,) = await take(frames, listed)
        await noise(client)
        rare = await Queue(client).submit("rare", {}, options=SubmitOptions(delay=9))
        monkeypatch.setattr(many, "PAGE", 2)
        monkeypatch.setattr(many, "replay", replay)
        async with api.following(JobFilter(task="rare"), after=first.id) as again:
            assert reads == 1
            assert durable(await take(again, is_event("status"))) == [(rare.id, "status")]
            assert reads > 5


# --- filters --------------------------------------------------------------------------------------------------------


async def test_two_watchers_with_different_filters_each_get_their_own(client: ArqRedis, api: Api) -> None:
    queue = Queue(client)
    await queue.submit("a", {}, options=SubmitOptions(delay=9, tags=["x"]), owner="me")
    await queue.submit("b", {}, options=SubmitOptions(delay=9, tags=["x", "y"]), owner="you")
    filters = {
        JobFilter(task="a"): ["a"],
        JobFilter(tag="x"): ["b", "a"],
        JobFilter(tag="y", task="a"): [],
        JobFilter(owner="you"): ["b"],
        JobFilter(owner="you", tag="x"): ["b"],
        JobFilter(status="queued"): [],
        JobFilter(status="scheduled", task="b"): ["b"],
        JobFilter(status="failed"): [],
    }
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(api.following(wanted)) for wanted in filters]
        for stream, tasks in zip(streams, filters.values(), strict=True):
            assert [about(frame)["task"] for frame in (await take(stream, listed))[:-1]] == tasks
        for task, owner in (("a", "me"), ("b", "you"), ("a", "you")):
            await queue.submit(task, {}, options=SubmitOptions(delay=9, tags=["y"]), owner=owner)
        expected = [["a", "a"], [], ["a", "a"], ["b", "a"], [], [], ["b"], []]
        for stream, tasks in zip(streams, expected, strict=True):
            for task in tasks:
                assert about(await anext(stream))["task"] == task
        last = await queue.submit("a", {}, options=SubmitOptions(tags=["x", "y"]), owner="you")
        for stream, wanted in zip(streams, filters, strict=True):
            if wanted.task != "b" and wanted.status != "failed":
                assert about(await anext(stream))["job"] == last.id


async def test_by_status_the_event_that_enters_and_the_one_that_leaves_are_told(client: ArqRedis, api: Api) -> None:
    waiting = await Queue(client).submit("speak", {}, options=SubmitOptions(delay=100))
    async with api.following(JobFilter(status="running")) as frames:
        assert len(await take(frames, listed)) == 1
        job = await SpeakingJob.start(client)
        await job.log("x")
        await Queue(client).cancel(waiting.id)
        await job.finish()
        seen = await take(frames, is_event("done"))
    assert durable(seen) == [(job.id, "status"), (job.id, "log"), (job.id, "done")]
    assert about(seen[0])["data"]["status"] == "running"


async def test_a_purged_job_is_told_gone(client: ArqRedis, api: Api) -> None:
    queue = Queue(client)
    waiting = await queue.submit("speak", {}, options=SubmitOptions(delay=100))
    ended = await SpeakingJob.start(client)
    await ended.finish()
    async with api.following() as frames:
        await take(frames, listed)
        await queue.purge(waiting.id)
        await queue.purge(ended.id)
        seen = await take(frames, is_event("gone", ended))
    assert durable(seen) == [(waiting.id, "done"), (waiting.id, "gone"), (ended.id, "gone")]
    assert about(seen[0])["data"]["status"] == "cancelled"
    assert about(seen[2])["data"] == {"status": "succeeded"}


async def test_the_end_of_a_job_that_was_run_again_is_told_as_a_status(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        first = await take(frames, listed)
        job = await SpeakingJob.start(client)
        await job.finish(JobStatus.FAILED)
        await Queue(client).retry(job.id)
        async with api.following(after=first[-1].id) as late:
            seen = await take(late, lambda frame: b'"queued","attempt":1' in frame.data)
    assert [(frame.event, about(frame)["data"]["status"]) for frame in seen] == [
        ("status", "queued"),
        ("status", "running"),
        ("status", "failed"),
        ("status", "queued"),
    ]


# --- the join -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the read", "after the read"])
async def test_what_happens_while_snapshots_are_read_comes_once(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    job = await SpeakingJob.start(client)
    said = False

    async def read(client: Redis, job_ids: Sequence[str]) -> list[Record]:
        nonlocal said
        if moment == "after the read":
            records = await store.read_records(client, job_ids)
        if not said:
            said = True
            await job.log("meanwhile")
            await job.progress(7)
        if moment == "before the read":
            records = await store.read_records(client, job_ids)
        return records

    monkeypatch.setattr(many, "read_records", read)
    async with api.following() as frames:
        first = await take(frames, listed)
        await job.finish()
        rest = await take(frames, is_event("done"))
    told = about(first[0])["data"]["version"]
    if moment == "before the read":
        assert told == 4
        assert [frame.event for frame in rest] == ["done"]
    else:
        assert told == 2
        assert [frame.event for frame in rest] == ["log", "progress", "done"]


async def test_a_job_that_moves_while_snapshots_are_read_is_shown(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await SpeakingJob.start(client)

    async def read(client: Redis, job_ids: Sequence[str]) -> list[Record]:
        await job.finish()
        return await store.read_records(client, job_ids)

    monkeypatch.setattr(many, "read_records", read)
    async with api.following() as frames:
        seen = await take(frames, is_event("done"))
    assert [frame.event for frame in seen] == ["listed", "done"]


async def test_the_newest_jobs_are_shown_and_that_there_are_more(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await Queue(client).submit("speak", {}, options=SubmitOptions(delay=9)) for _ in range(12)]
    monkeypatch.setattr(many, "SNAPSHOTS_MOST", 7)
    monkeypatch.setattr(many, "PAGE", 5)
    async with api.following() as frames:
        seen = await take(frames, listed)
        assert {about(frame)["job"] for frame in seen[:-1]} <= {job.id for job in jobs}
        assert about(seen[-1])["data"] == {"jobs": 7, "more": True}
    monkeypatch.setattr(many, "SNAPSHOTS_MOST", 12)
    async with api.following() as frames:
        assert about((await take(frames, listed))[-1])["data"] == {"jobs": 12, "more": False}
    monkeypatch.setattr(many, "SCANNED_MOST", 4)
    async with api.following() as frames:
        assert about((await take(frames, listed))[-1])["data"] == {"jobs": 4, "more": True}


async def test_snapshots_begin_again_when_redis_was_away_in_between(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        await Queue(client).submit("speak", {}, options=SubmitOptions(delay=9))
    calls = 0

    async def read(client: Redis, job_ids: Sequence[str]) -> list[Record]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ConnectionError
        return await store.read_records(client, job_ids)

    monkeypatch.setattr(many, "read_records", read)
    monkeypatch.setattr(many, "PAGE", 2)
    monkeypatch.setattr(many, "AWAY_SECONDS", 0.01)
    async with api.following() as frames:
        seen = await take(frames, listed)
    assert [frame.event for frame in seen] == ["snapshot"] * 6 + ["listed"]
    assert len({about(frame)["job"] for frame in seen[2:-1]}) == 4


# --- messages that never come ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [{3}, {4}, {3, 4}, {5}, {3, 4, 5, 6}, {4, 7}])
async def test_a_gap_is_filled_from_the_journal(client: ArqRedis, api: Api, lossy: LossySource, lost: set[int]) -> None:
    async with api.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(client)
        seen = await take(frames, lambda frame: b'"running"' in frame.data)
        lossy.drops = lambda event: event.version in lost
        await job.log("3", "4")
        await job.progress(5)
        await job.log("6", "7", "8")
        await job.finish()
        seen += await take(frames, is_event("done"))
    assert {event.version for event in lossy.dropped} == lost
    assert [kind for _, kind in durable(seen)] == await log_of(client, job)


@pytest.mark.parametrize("last", ["log", "progress", "done"])
async def test_a_lost_last_message_is_found(
    client: ArqRedis, api_that_looks: Api, lossy: LossySource, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(tape, "LATE_SECONDS", 0.01)
    async with api_that_looks.following() as frames:
        job = await SpeakingJob.start(client)
        await take(frames, lambda frame: b'"running"' in frame.data)
        lossy.drops = lambda event: event.kind == last
        if last == "log":
            await job.log("x")
        elif last == "progress":
            await job.progress(7)
        else:
            await job.finish()
        seen = await take(frames, is_event(last))
    if last == "progress":
        assert about(seen[-1])["data"]["current"] == 7


async def test_lost_progress_is_told_when_the_gap_shows(client: ArqRedis, api: Api, lossy: LossySource) -> None:
    async with api.following() as frames:
        jobs = [await SpeakingJob.start(client) for _ in range(2)]
        await take(frames, lambda frame: b'"running"' in frame.data and about(frame)["job"] == jobs[1].id)
        lossy.drops = lambda event: event.kind == "progress"
        await jobs[0].progress(5)
        await jobs[1].log("and now")
        seen = await take(frames, is_event("progress", jobs[0]))
    assert about(seen[-1])["data"]["current"] == 5
    assert durable(seen) == [(jobs[1].id, "log")]


async def test_progress_that_was_read_is_not_set_back_by_what_is_heard_later(
    client: ArqRedis, api: Api, lossy: LossySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await SpeakingJob.start(client)

    async def moves_meanwhile(*arguments: Any, **options: Any) -> Any:
        lossy.drops = lambda event: False
        await job.progress(6)
        await until(lambda: bool(api.tape._inbox))
        lossy.open.clear()
        await job.progress(7)
        return await store.unfinished_ids(*arguments, **options)

    monkeypatch.setattr(tape, "unfinished_ids", moves_meanwhile)
    async with api.following() as frames:
        await take(frames, is_event("listed"))
        lossy.drops = lambda event: event.kind == "progress"
        await job.progress(5)
        await job.log("behind the gap")
        seen = await take(frames, is_event("progress"))
        await until(lambda: not api.tape._inbox)
        lossy.open.set()
        await job.log("end")
        seen += await take(frames, says("end"))
    assert [about(frame)["data"]["current"] for frame in seen if frame.event == "progress"] == [7]


async def test_a_resumption_tells_the_progress_that_was_made_meanwhile(client: ArqRedis, api: Api) -> None:
    async with api.following():
        async with api.following() as frames:
            job = await SpeakingJob.start(client)
            last = last_id(await take(frames, lambda frame: b'"running"' in frame.data))
        for number in range(5):
            await job.progress(number)
        async with api.following(after=last) as frames:
            assert about(await anext(frames))["data"]["current"] == 4


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_a_watcher_that_takes_nothing_for_long_gets_all_of_it_later(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "TAPE_FRAMES", 20)
    monkeypatch.setattr(tape, "PAGE", 7)
    monkeypatch.setattr(many, "PAGE", 7)
    async with api.following() as slow, api.following() as quick:
        await take(slow, listed)
        await take(quick, listed)
        jobs = [*await noise(client), *await noise(client), *await noise(client)]
        seen = await take(quick, is_event("done", jobs[-1]))
        late = await take(slow, is_event("done", jobs[-1]))
    assert ids(seen) == ids(late)
    assert len(ids(late)) == 9 * 6


async def test_of_a_jobs_progress_a_slow_watcher_gets_the_latest(client: ArqRedis, api: Api) -> None:
    async with api.following() as slow, api.following() as quick:
        await take(slow, listed)
        await take(quick, listed)
        job, other = [await SpeakingJob.start(client) for _ in range(2)]
        for number in range(20):
            await job.progress(number)
            await job.log(f"{number}")
            await take(quick, says(f"{number}"))
        await other.progress(99)
        await other.finish()
        seen = await take(slow, is_event("done", other))
    progress = [about(frame) for frame in seen if frame.event == "progress"]
    assert [(one["job"], one["data"]["current"]) for one in progress] == [(job.id, 19), (other.id, 99)]
    assert sum(map(is_event("log"), seen)) == 20


async def test_the_tape_is_bounded(client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "TAPE_BYTES", 20_000)
    async with api.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(client)
        for _ in range(20):
            await job.log("x" * 5000)
            assert api.tape._bytes <= 20_000
        await job.finish()
        seen = await take(frames, is_event("done"))
        assert sum(map(is_event("log"), seen)) == 20
        assert api.tape._bytes == sum(len(strip.frame.data) for strip in api.tape._strips)


async def test_a_flood_is_read_from_the_journal(
    client: ArqRedis, api: Api, lossy: LossySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "INBOX", 10)
    async with api.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(client)
        await job.log(*(str(number) for number in range(300)))
        await job.finish()
        seen = await take(frames, is_event("done"))
    assert [kind for _, kind in durable(seen)] == await log_of(client, job)


async def test_who_wants_little_is_sent_an_id_now_and_then(
    client: ArqRedis, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "MARK_EVERY", 10)
    async with api.following(JobFilter(task="rare")) as frames, api.following():
        await take(frames, listed)
        await noise(client)
        mark = await anext(frames)
        assert (mark.event, about(mark)["data"]) == ("mark", None)
        rare = await Queue(client).submit("rare", {}, options=SubmitOptions(delay=9))
        async with api.following(JobFilter(task="rare"), after=mark.id) as again:
            seen = await take(again, is_event("status"))
        assert durable(seen) == [(rare.id, "status")]


# --- the journal begins anew ----------------------------------------------------------------------------------------


async def test_a_journal_that_was_lost_makes_everybody_begin_anew(client: ArqRedis, api_that_looks: Api) -> None:
    async with api_that_looks.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(client)
        await take(frames, lambda frame: b'"running"' in frame.data)
        await client.delete(keys.JOURNAL)
        await job.log("nobody numbers this")
        seen = await take(frames, listed)
        assert about(seen[0])["data"]["version"] == 3
        await job.log("but this")
        assert durable(await take(frames, says("but this"))) == [(job.id, "log")]


async def test_another_process_that_begins_the_journal_anew_is_heard_of(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        await take(frames, listed)
        await client.delete(keys.JOURNAL)
        await want(client, history=await api.hub.epoch())
        job = await SpeakingJob.start(client)
        seen = await take(frames, listed)
        await job.finish()
        assert durable(seen + await take(frames, is_event("done")))[-1] == (job.id, "done")


async def test_a_journal_that_is_behind_what_was_heard_begins_anew(client: ArqRedis, api_that_looks: Api) -> None:
    async with api_that_looks.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(client)
        await job.log("x")
        await take(frames, says("x"))
        await cast("Awaitable[int]", client.hset(keys.JOURNAL, "seq", "1"))
        assert [frame.event for frame in await take(frames, listed)] == ["snapshot", "listed"]


# --- connections ----------------------------------------------------------------------------------------------------


async def test_the_channel_is_subscribed_to_while_somebody_follows(client: ArqRedis, api: Api) -> None:
    async def subscribers() -> int:
        (one,) = await cast("Awaitable[list[tuple[bytes, int]]]", client.pubsub_numsub(journal.CHANNEL))
        return one[1]

    assert await subscribers() == 0
    assert not await client.exists(keys.JOURNAL)
    async with api.following():
        async with api.following():
            assert await subscribers() == 1
        assert api.tape.readers == 1
        assert await subscribers() == 1
    await until(lambda: api.hub.channels == 0)
    assert await subscribers() == 0
    async with api.following() as frames:
        await take(frames, listed)
        await noise(client)
        await take(frames, is_event("done"))


async def test_what_was_on_the_tape_before_everybody_left_is_not_told_to_the_next(client: ArqRedis, api: Api) -> None:
    async with api.following() as frames:
        await noise(client)
        last = last_id(await take(frames, is_event("done")))
    jobs = await noise(client)
    async with api.following(after=last) as frames:
        seen = await take(frames, is_event("done", jobs[-1]))
    assert len(ids(seen)) == 2 + 3 * 6


async def test_killed_subscriptions_lose_nothing(real_source: UrlSource, real_client: ArqRedis) -> None:
    async with Api(real_source).running() as api, api.following() as frames:
        await take(frames, listed)
        job = await SpeakingJob.start(real_client)
        for number in range(20):
            await job.log(f"{number} a")
            if number % 5 == 0:
                await until(lambda: api.hub.listening)
                await cast("Awaitable[int]", real_client.client_kill_filter(_type="pubsub"))
            await job.log(f"{number} b")
            await job.progress(number)
        await job.finish()
        seen = await take(frames, is_event("done"))
    assert [kind for _, kind in durable(seen)] == await log_of(real_client, job)


async def test_a_restart_of_redis_loses_nothing_and_ends_no_stream(own_server: ChildRedis) -> None:
    source = UrlSource(own_server.url, kind="child")
    client = source.client()
    async with Api(source).running() as api, api.following() as frames:
        first = await take(frames, listed)
        job = await SpeakingJob.start(client)
        await job.log("before")
        seen = await take(frames, says("before"))
        await asyncio.to_thread(own_server.stop)
        await until(lambda: not api.hub.listening)
        saying = asyncio.create_task(job.log("while it was away"))
        await asyncio.to_thread(own_server.start)
        await saying
        await job.finish()
        seen += await take(frames, is_event("done"))
        assert [kind for _, kind in durable(seen)] == await log_of(client, job)
        async with api.following(after=first[-1].id) as again:
            assert ids(await take(again, is_event("done"))) == ids(seen)
    await client.aclose()


async def test_a_watcher_while_redis_is_away_fails_soon(tmp_path: Path) -> None:
    source = UrlSource(f"unix://{tmp_path}/nobody.sock", kind="child")
    async with Api(source).running() as api:
        with pytest.raises(TimeoutError):
            async with api.following():
                pass
        assert api.tape.readers == 0
        await until(lambda: api.hub.channels == 0)


async def test_a_drain_ends_every_stream_and_admits_no_more(client: ArqRedis, api: Api) -> None:
    async with api.following() as one, api.following(JobFilter(task="x")) as two:
        await take(one, listed)
        await take(two, listed)
        api.hub.drain()
        for stream in (one, two):
            assert [frame.event async for frame in stream] == ["retry"]
        async with api.following() as three:
            assert [frame.event async for frame in three] == ["retry"]
    assert await client.exists(keys.JOURNAL)  # those who come back elsewhere resume


# --- everything at once ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_is_cut_and_dropped_the_streams_are_what_the_logs_are(
    source: RedisSource, client: ArqRedis, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 jobs, two processes whose messages get lost, four watchers that are cut again and again."""
    monkeypatch.setattr(tape, "TAPE_FRAMES", 64)
    monkeypatch.setattr(tape, "LATE_SECONDS", 0.05)
    dice = random.Random(seed)

    async def live(number: int) -> SpeakingJob:
        await asyncio.sleep(dice.random() * 0.5)
        job = await SpeakingJob.start(client, tags=["odd" if number % 2 else "even"])
        for line in range(dice.randrange(2, 12)):
            await dice.choice([job.log, job.chunk])(f"{line} a", f"{line} b")
            await job.progress(line)
            await asyncio.sleep(dice.random() * 0.05)
        await job.finish(dice.choice([JobStatus.SUCCEEDED, JobStatus.FAILED]))
        return job

    async def watch(wanted: JobFilter, joined: asyncio.Barrier) -> list[Frame]:
        seen: list[Frame] = []
        async with apis[0].following(wanted) as frames:
            after = last_id(await take(frames, listed))
        await joined.wait()
        while True:
            async with dice.choice(apis).following(wanted, after=after) as frames:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(dice.random() * 0.1):
                        async for frame in frames:
                            seen.append(frame)
                            after = frame.id or after
                            if b"the last one" in frame.data:
                                return seen

    sources = [LossySource(source), LossySource(source)]
    apis = [Api(one, look=0.2) for one in sources]
    async with apis[0].running(), apis[1].running(), asyncio.timeout(5 * PATIENCE):
        joined = asyncio.Barrier(5)
        filters = [EVERYTHING, EVERYTHING, JobFilter(tag="odd"), JobFilter(tag="even")]
        watchers = [asyncio.create_task(watch(wanted, joined)) for wanted in filters]
        await joined.wait()
        for lossy in sources:
            lossy.drops = lambda event: dice.random() < 0.1
        jobs = await asyncio.gather(*(live(number) for number in range(50)))
        end = await SpeakingJob.start(client, tags=["odd", "even"])
        await end.log("the last one")
        streams = await asyncio.gather(*watchers)
    assert all(one.dropped for one in sources)
    logs = {job.id: await log_of(client, job) for job in jobs}
    for wanted, seen in zip(filters, streams, strict=True):
        numbers = [int(one.partition("-")[2]) for one in ids(seen)]
        assert numbers == sorted(set(numbers))
        assert not any(map(is_event("snapshot"), seen))
        told: dict[str, list[str]] = {}
        for job_id, kind in durable(seen):
            told.setdefault(job_id, []).append(kind)
        del told[end.id]
        tags = {"odd": jobs[1::2], "even": jobs[::2], None: jobs}[wanted.tag]
        assert told == {job.id: logs[job.id] for job in tags}
    assert ids(streams[0]) == ids(streams[1])
