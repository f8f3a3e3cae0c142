"""The journal has every durable event of every job once, in order, while it is wanted; and costs nothing otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import cast

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

from jobstream import journal, keys
from jobstream.events import read_snapshot
from jobstream.job import JobStatus
from jobstream.journal import JournalEntry, Place, parse_entry, replay, want
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource
from jobstream.store import JobFilter
from tests.speaking_job import SpeakingJob

pytestmark = pytest.mark.timeout(30)

HISTORY = "0123abcd"


async def whole(client: Redis, place: Place, *, limit: int = 100) -> list[JournalEntry]:
    """All that is behind the place."""
    entries: list[JournalEntry] = []
    while True:
        page = await replay(client, place, limit=limit)
        assert page is not None
        assert page.complete
        entries += page.entries
        place = Place(place.generation, page.seq)
        if not page.more:
            return entries


async def spoken(client: Redis) -> SpeakingJob:
    """A job that has said one of everything (eight versions) and has ended."""
    job = await SpeakingJob.start(client)
    await job.log("one", "two")
    await job.progress(1)
    await job.chunk("three")
    await job.progress(2)
    await job.finish()
    return job


async def exists(client: Redis) -> int:
    return int(await client.exists(keys.JOURNAL, keys.JOURNAL_LOG))


@pytest.fixture
async def published(source: RedisSource) -> AsyncIterator[asyncio.Queue[JournalEntry]]:
    """What comes over the journal's channel."""
    heard: asyncio.Queue[JournalEntry] = asyncio.Queue()
    subscriber = source.subscriber()
    async with subscriber.pubsub() as pubsub:
        await pubsub.subscribe(journal.CHANNEL)
        await pubsub.get_message(timeout=5)

        async def listen() -> None:
            async for message in pubsub.listen():
                heard.put_nowait(parse_entry(message["data"]))

        task = asyncio.create_task(listen())
        yield heard
        task.cancel()
        await asyncio.wait({task})
    await subscriber.aclose()


async def test_nothing_is_kept_while_nobody_wants_it(client: ArqRedis) -> None:
    job = await spoken(client)
    await Queue(client).purge(job.id)
    assert await exists(client) == 0


async def test_it_has_what_the_logs_have_in_one_order(client: ArqRedis) -> None:
    start = await want(client, history=HISTORY)
    assert start.seq == 0
    jobs = await asyncio.gather(*(spoken(client) for _ in range(5)))
    entries = await whole(client, start)
    assert [entry.seq for entry in entries] == sorted({entry.seq for entry in entries})
    assert all(entry.id == (start.generation, entry.seq) for entry in entries)
    for job in jobs:
        snapshot = await read_snapshot(client, job.id, after=0)
        assert snapshot is not None
        assert [entry.event for entry in entries if entry.job_id == job.id] == snapshot.events
    assert (await want(client, history=HISTORY, seen=start)).seq == 5 * 8


async def test_every_event_is_published_with_the_number_that_it_is_kept_under(
    client: ArqRedis, published: asyncio.Queue[JournalEntry]
) -> None:
    start = await want(client, history=HISTORY)
    await spoken(client)
    async with asyncio.timeout(10):
        heard = [await published.get() for _ in range(8)]
    assert [entry.seq for entry in heard] == list(range(1, 9))
    assert [entry for entry in heard if entry.durable] == await whole(client, start)
    assert [entry.event.kind for entry in heard if not entry.durable] == ["progress", "progress"]


async def test_an_entry_tells_of_its_job_and_of_the_status_before_and_after(client: ArqRedis) -> None:
    start = await want(client, history=HISTORY)
    options = SubmitOptions(tags=["a:1", "b"], delay=100)
    job = await Queue(client).submit("speak", {}, options=options, owner="team=a/Zoe")
    await Queue(client).cancel(job.id)
    again = await SpeakingJob.start(client)
    await again.log("x")
    await again.finish(JobStatus.FAILED)
    await Queue(client).retry(again.id)
    entries = await whole(client, start)
    first = entries[0]
    assert (first.job_id, first.task, first.owner) == (job.id, "speak", "team=a/Zoe")
    assert first.tags == frozenset({"a:1", "b"})
    assert (entries[2].tags, entries[2].owner) == (frozenset(), None)
    assert [(entry.event.kind, entry.was, entry.status) for entry in entries] == [
        ("status", "-", "scheduled"),
        ("done", "scheduled", "cancelled"),
        ("status", "-", "queued"),
        ("status", "queued", "running"),
        ("log", "running", "running"),
        ("done", "running", "failed"),
        ("status", "failed", "queued"),
    ]


async def test_a_purged_job_is_told_gone_and_what_it_said_stays(client: ArqRedis) -> None:
    start = await want(client, history=HISTORY)
    waiting = await Queue(client).submit("speak", {}, options=SubmitOptions(tags=["t"], delay=100), owner="o")
    ended = await spoken(client)
    for job_id in (waiting.id, ended.id):
        await Queue(client).purge(job_id)
    entries = await whole(client, start)
    gone = [entry for entry in entries if entry.event.kind == "gone"]
    assert [(entry.job_id, entry.status, entry.event.data) for entry in gone] == [
        (waiting.id, "cancelled", b'{"status":"cancelled"}'),
        (ended.id, "succeeded", b'{"status":"succeeded"}'),
    ]
    assert (gone[0].tags, gone[0].owner) == (frozenset({"t"}), "o")
    assert [entry.event.kind for entry in entries if entry.job_id == ended.id] == [
        *("status", "status", "log", "log", "chunk", "done", "gone")
    ]


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_a_replay_begins_behind_any_number(client: ArqRedis, limit: int) -> None:
    start = await want(client, history=HISTORY)
    await spoken(client)
    await spoken(client)
    entries = await whole(client, start)
    for seq in range(17):
        assert await whole(client, start._replace(seq=seq), limit=limit) == [one for one in entries if one.seq > seq]


async def test_a_page_ends_when_it_is_large(client: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    start = await want(client, history=HISTORY)
    job = await SpeakingJob.start(client)
    await job.log(*("x" * 1000 for _ in range(100)))
    monkeypatch.setattr(journal, "PAGE_BYTES", 10_000)
    page = await replay(client, start, limit=1000)
    assert page is not None
    assert page.more
    assert len(page.entries) < 30
    assert len(await whole(client, start, limit=1000)) == 102


async def test_it_is_capped_and_says_so(client: ArqRedis) -> None:
    start = await want(client, history=HISTORY)
    await cast("Awaitable[int]", client.hincrby(keys.JOURNAL, "bytes", 32 * 1024**2 - 3000))
    job = await SpeakingJob.start(client)
    await job.log(*("x" * 100 for _ in range(40)))
    page = await replay(client, start, limit=100)
    assert page is not None
    assert not page.complete
    assert 0 < len(page.entries) < 40
    floor = int(await cast("Awaitable[bytes]", client.hget(keys.JOURNAL, "floor")))
    assert page.entries[0].seq == floor + 1
    assert await whole(client, start._replace(seq=floor)) == page.entries
    page = await replay(client, start._replace(seq=floor - 1), limit=100)
    assert page is not None
    assert not page.complete


async def test_progress_alone_makes_no_gap(client: ArqRedis) -> None:
    job = await SpeakingJob.start(client)
    start = await want(client, history=HISTORY)
    for number in range(5):
        await job.progress(number)
    assert await whole(client, start) == []
    await job.log("x")
    assert [entry.seq for entry in await whole(client, start)] == [6]
    assert [entry.seq for entry in await whole(client, start._replace(seq=3))] == [6]


async def test_whoever_wants_it_too_gets_the_same_and_it_lives_longer(client: ArqRedis) -> None:
    first = await want(client, history=HISTORY, life=10)
    job = await SpeakingJob.start(client)
    second = await want(client, history=HISTORY, life=100)
    assert second == (first.generation, 2)
    assert 90_000 < await client.pttl(keys.JOURNAL) <= 100_000
    assert await client.pttl(keys.JOURNAL_LOG) > 100_000
    await job.finish()
    assert len(await whole(client, second)) == 1


async def test_every_key_of_it_expires(client: ArqRedis) -> None:
    await want(client, history=HISTORY)
    await spoken(client)
    for key in (keys.JOURNAL, keys.JOURNAL_LOG):
        assert await client.pttl(key) > 0


async def test_it_ends_when_nobody_wants_it_and_begins_anew(client: ArqRedis) -> None:
    first = await want(client, history=HISTORY, life=0.05)
    job = await SpeakingJob.start(client)
    async with asyncio.timeout(10):
        while await client.exists(keys.JOURNAL):  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)
    await job.log("nobody counts this")
    assert await replay(client, first, limit=10) is None
    second = await want(client, history=HISTORY, seen=first)
    assert second.generation != first.generation
    assert second.seq == 0
    assert await whole(client, second) == []
    assert await replay(client, first, limit=10) is None


@pytest.mark.parametrize(("history", "seen", "same"), [(HISTORY, 2, True), (HISTORY, 3, False), ("99999999", 2, False)])
async def test_it_begins_anew_when_history_forked(client: ArqRedis, history: str, seen: int, same: bool) -> None:
    first = await want(client, history=HISTORY)
    await SpeakingJob.start(client)
    second = await want(client, history=history, seen=Place(first.generation, seen))
    assert (second == (first.generation, 2)) is same
    if not same:
        assert second.seq == 0


async def test_a_list_that_was_evicted_is_no_silent_gap(client: ArqRedis) -> None:
    start = await want(client, history=HISTORY)
    job = await SpeakingJob.start(client)
    await client.delete(keys.JOURNAL_LOG)
    for _ in range(2):
        page = await replay(client, start, limit=10)
        assert page is not None
        assert not page.complete
        await job.log("goes on")
    assert len(await whole(client, start._replace(seq=2))) == 2


def entry(*, owner: str | None) -> JournalEntry:
    text = b"0123abcd 1 queued 2 5 3 0 j1words" + b'a b1 status 5 {"status":"running"}'
    return parse_entry(text)._replace(owner=owner)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (JobFilter(), True),
        (JobFilter(task="words", tag="a", owner="me", status="running"), True),
        (JobFilter(status="queued"), True),
        (JobFilter(status="succeeded"), False),
        (JobFilter(task="word"), False),
        (JobFilter(tag="a b"), False),
        (JobFilter(owner="m"), False),
    ],
)
def test_an_entry_matches_a_filter_in_every_part(wanted: JobFilter, admitted: bool) -> None:
    assert entry(owner="me").matches(wanted) is admitted


def test_a_job_without_an_owner_matches_no_owner() -> None:
    assert not entry(owner=None).matches(JobFilter(owner="me"))
