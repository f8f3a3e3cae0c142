"""A batch's record: whatever becomes of its jobs, it counts them, and says once that they have all ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from arq.connections import ArqRedis

from jobstream import keys, store
from jobstream.batch import Batch, batch_from_record, batch_job_ids
from jobstream.batches import cancel_batch, find_batch, list_batch
from jobstream.errors import BatchNotFound, InvalidParameter, JobNotFound
from jobstream.events import read_snapshot
from jobstream.queue import Queue, StoredBatch, Submission, SubmitOptions
from jobstream.redis import RedisSource
from tests.working import Settings, event_of, working

LATER = SubmitOptions(run_at=datetime.now(UTC) + timedelta(days=1))


async def stored(queue: Queue, *submissions: Submission, owner: str | None = None) -> StoredBatch:
    batch, replayed = await queue.submit_batch(submissions, owner=owner)
    assert not replayed
    return batch


async def batch_of(client: ArqRedis, batch_id: str) -> Batch:
    return batch_from_record(await find_batch(client, batch_id))


def counts(batch: Batch) -> dict[str, int]:
    """Those that are not 0."""
    return {name: count for name, count in batch.progress.counts.model_dump().items() if count}


async def kinds(client: ArqRedis, batch_id: str) -> list[str]:
    snapshot = await read_snapshot(client, batch_id, after=0)
    assert snapshot is not None
    return [event.kind for event in snapshot.events]


async def test_a_batch_counts_its_jobs_to_their_end(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, *[Submission("add", {"a": n}) for n in range(5)], Submission("raises", {}))
    before = await batch_of(client, batch.batch_id)
    assert (before.status, before.done, before.version, counts(before)) == ("queued", False, 1, {"queued": 6})
    assert (before.progress.current, before.progress.total, before.progress.percent) == (0, 6, 0)
    async with working(source, settings()):
        await event_of(client, batch.batch_id, "done")
    after = await batch_of(client, batch.batch_id)
    assert (after.status, after.done) == ("failed", True)
    assert counts(after) == {"succeeded": 5, "failed": 1}
    assert (after.progress.current, after.progress.percent) == (6, 100)
    assert after.finished_at is not None
    assert after.expires_at is not None
    assert await kinds(client, batch.batch_id) == ["status", "status", "done"]
    assert 3 <= after.version <= 13, "at most two changes a job: it began, it ended"


async def test_a_batch_of_jobs_that_succeed_has_succeeded(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}))
    async with working(source, settings()):
        await event_of(client, batch.batch_id, "done")
    assert (await batch_of(client, batch.batch_id)).status == "succeeded"


async def test_a_job_that_is_run_again_opens_its_batch_again(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}), Submission("raises", {}))
    async with working(source, settings()):
        await event_of(client, batch.batch_id, "done")
    await queue.retry(batch.job_ids[1])
    again = await batch_of(client, batch.batch_id)
    assert (again.status, again.done, counts(again)) == ("running", False, {"succeeded": 1, "queued": 1})
    assert (again.finished_at, again.expires_at) == (None, None)
    await queue.cancel(batch.job_ids[1])
    last = await batch_of(client, batch.batch_id)
    assert (last.status, counts(last)) == ("cancelled", {"succeeded": 1, "cancelled": 1})


async def test_a_cancelled_batch_begins_nothing_any_more(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    waiting = [Submission("add", {"a": n}, LATER if n % 2 else SubmitOptions()) for n in range(300)]
    batch = await stored(queue, *waiting)
    record, was_done = await cancel_batch(client, batch.batch_id)
    assert not was_done
    assert batch_from_record(record).status == "cancelled"
    assert counts(batch_from_record(record)) == {"cancelled": 300}
    assert await client.zcard(keys.queue("default")) == 0
    record, was_done = await cancel_batch(client, batch.batch_id)
    assert was_done
    with pytest.raises(BatchNotFound):
        await cancel_batch(client, batch.job_ids[0])


async def test_jobs_that_run_are_told_when_their_batch_is_cancelled(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("waits", {}), Submission("add", {"a": 1}, LATER))
    async with working(source, settings()):
        await event_of(client, batch.job_ids[0], "log")
        record, _ = await cancel_batch(client, batch.batch_id)
        assert batch_from_record(record).status == "cancelling"
        await event_of(client, batch.batch_id, "done")
    assert counts(await batch_of(client, batch.batch_id)) == {"cancelled": 2}


async def test_what_a_cancel_that_died_has_not_reached_is_not_begun(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}), Submission("add", {"a": 2}))
    await client.hset(keys.record(batch.batch_id), "status", "cancelling")  # type: ignore[misc]
    async with working(source, settings()):
        await event_of(client, batch.batch_id, "done")
    assert counts(await batch_of(client, batch.batch_id)) == {"cancelled": 2}


async def test_jobs_that_nobody_ever_ran_do_not_keep_a_batch_open(queue: Queue, client: ArqRedis) -> None:
    batch = await stored(queue, *[Submission("add", {"a": n}, owner="ada") for n in range(3)], owner="ada")
    await queue.cancel(batch.job_ids[0])
    await queue.purge(batch.job_ids[1])
    for key in (keys.record(batch.job_ids[2]), keys.log(batch.job_ids[2]), keys.arq_job(batch.job_ids[2])):
        await client.delete(key)
    members = await client.zrange(keys.EXPIRY, 0, -1)
    await client.zadd(keys.EXPIRY, dict.fromkeys(members, 1))
    assert await store.sweep(client, queues=["default"]) == [batch.job_ids[2]]
    found = await batch_of(client, batch.batch_id)
    assert (found.status, counts(found)) == ("failed", {"cancelled": 2, "failed": 1})
    assert await store.sweep(client, queues=["default"]) == []


async def test_a_batch_is_stored_once_under_its_id(queue: Queue, client: ArqRedis) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}), Submission("add", {"a": 2}))
    again, _ = await queue.submit_batch(
        [Submission("add", {"a": 1}), Submission("add", {"a": 2})], batch_id=batch.batch_id
    )
    assert again == batch
    assert (await batch_of(client, batch.batch_id)).version == 1
    first, replayed = await queue.submit_batch([Submission("add", {"a": 1})], key="k", fingerprint="f")
    assert not replayed
    same, replayed = await queue.submit_batch([Submission("add", {"a": 1})], key="k", fingerprint="f")
    assert replayed
    assert same == first
    for wrong in ([], [Submission("add", {"a": 1}, job_id="x")]):
        with pytest.raises(InvalidParameter):
            await queue.submit_batch(wrong)


async def test_a_batch_lists_its_jobs_in_pages_and_by_status(queue: Queue, client: ArqRedis) -> None:
    batch = await stored(queue, *[Submission("add", {"a": n}) for n in range(7)])
    await stored(queue, Submission("add", {"a": 8}))
    for number in (5, 1, 3):
        await queue.cancel(batch.job_ids[number])
    await queue.purge(batch.job_ids[0])
    record = await find_batch(client, batch.batch_id)
    assert batch_job_ids(record) == batch.job_ids
    pages, cursor = [], None
    while True:
        page = await list_batch(client, record, limit=3, cursor=cursor)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [batch.job_ids[1:3], batch.job_ids[3:6], batch.job_ids[6:]]
    first = await list_batch(client, record, status="cancelled", limit=2)
    rest = await list_batch(client, record, status="cancelled", limit=2, cursor=first.next_cursor)
    assert [job.id for job in first.jobs + rest.jobs] == [batch.job_ids[at] for at in (1, 3, 5)]
    assert rest.next_cursor is None
    with pytest.raises(InvalidParameter):
        await list_batch(client, record, cursor="x")


async def test_a_batch_is_no_job_and_belongs_to_its_owner(queue: Queue, client: ArqRedis) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}, owner="ada"), owner="ada")
    for owner in (None, "ada", "bob"):
        with pytest.raises(JobNotFound):
            await queue.get(batch.batch_id, owner=owner)
        with pytest.raises(JobNotFound):
            await queue.cancel(batch.batch_id, owner=owner)
    with pytest.raises(BatchNotFound):
        await find_batch(client, batch.batch_id, owner="bob")
    with pytest.raises(BatchNotFound):
        await find_batch(client, batch.job_ids[0])
    assert (await batch_of(client, batch.batch_id)).owner == "ada"


async def test_nothing_of_a_batch_stays_for_ever(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("add", {"a": 1}, SubmitOptions(ttl=60)))
    assert await client.pttl(keys.record(batch.batch_id)) > 0
    assert await client.pttl(keys.log(batch.batch_id)) > 0
    async with working(source, settings()):
        await event_of(client, batch.batch_id, "done")
    for key in (keys.record(batch.batch_id), keys.log(batch.batch_id)):
        assert await client.pttl(key) <= 60_000


async def test_an_attempt_that_is_given_back_is_counted_as_queued(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    batch = await stored(queue, Submission("waits", {}))
    async with working(source, settings()):
        await event_of(client, batch.job_ids[0], "log")
        assert counts(await batch_of(client, batch.batch_id)) == {"running": 1}
    assert counts(await batch_of(client, batch.batch_id)) == {"queued": 1}
