"""The queue and its scripts: what is stored, in which order, by whom it may be changed, and when it goes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus

from jobstream import events, keys, store
from jobstream.errors import InvalidParameter, JobGone, JobNotFound, RedisUnavailable
from jobstream.events import parse_message
from jobstream.job import JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.serialize import deserialize
from jobstream.store import JobFilter
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.speaking_job import SpeakingJob

LIVES_AS_LONG_AS_THE_DATA = {b"jobstream:epoch", b"arq:queue"}


@pytest.fixture
async def queue(client: ArqRedis) -> Queue:
    return Queue(client)


async def claim_one(client: ArqRedis) -> ClaimedJob:
    jobs, _ = await claim(client, queue="default", worker_id="w", slots=1, lease=10)
    assert len(jobs) == 1
    return jobs[0]


def outcome(status: JobStatus = JobStatus.SUCCEEDED, result: bytes = b"1") -> Outcome:
    return Outcome(status=status, result=result, arq_result=b"r")


async def test_a_submitted_job_has_record_payload_queue_entry_and_first_event(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {"text": "a b"}, options=SubmitOptions(tags=["x", "y"]))
    assert (job.status, job.version, job.attempt, job.tags) == (JobStatus.QUEUED, 1, 0, ["x", "y"])
    assert await queue.get(job.id) == job
    payload = deserialize(await client.get(keys.arq_job(job.id)))
    assert (payload["f"], payload["k"]) == ("words", {"text": "a b"})
    assert await client.zscore(keys.queue("default"), job.id) == job.created_at.timestamp() * 1000
    snapshot = await events.read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    assert [(event.version, event.kind) for event in snapshot.events] == [(1, "status")]


async def test_the_same_id_gives_the_same_job_once(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("words", {"text": "a"}, job_id="twice")
    second = await queue.submit("words", {"text": "b"}, job_id="twice")
    assert first == second
    assert await client.zcard(keys.queue("default")) == 1


async def test_a_delayed_job_is_scheduled_and_not_claimed_before_its_time(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(delay=60))
    assert job.status is JobStatus.SCHEDULED
    assert job.run_at is not None
    assert job.run_at - job.created_at == timedelta(seconds=60)
    claimed, due = await claim(client, queue="default", worker_id="w", slots=5, lease=10)
    assert claimed == []
    assert due is not None
    assert 59 < due <= 60


async def test_run_at_in_the_past_means_now(queue: Queue) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(run_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert (job.status, job.run_at) == (JobStatus.QUEUED, None)


@pytest.mark.parametrize(
    "options",
    [
        SubmitOptions(delay=-1),
        SubmitOptions(delay=float("nan")),
        SubmitOptions(delay=1, run_at=datetime(2030, 1, 1, tzinfo=UTC)),
        SubmitOptions(run_at=datetime(2030, 1, 1)),  # noqa: DTZ001 (the point)
        SubmitOptions(run_at=datetime(9999, 1, 1, tzinfo=UTC)),
        SubmitOptions(timeout=0),
        SubmitOptions(ttl=-5),
        SubmitOptions(ttl=float("inf")),
        SubmitOptions(queue="no spaces"),
        SubmitOptions(queue="health-check"),
        SubmitOptions(tags=["two words"]),
        SubmitOptions(tags=["t"] * 21),
    ],
    ids=repr,
)
async def test_options_that_make_no_sense_are_refused_and_store_nothing(
    queue: Queue, client: ArqRedis, options: SubmitOptions
) -> None:
    with pytest.raises(InvalidParameter):
        await queue.submit("words", {}, options=options)
    assert await client.keys("*") == []


async def test_an_unknown_job_is_not_found(queue: Queue) -> None:
    for call in (queue.get, queue.cancel, queue.purge):
        with pytest.raises(JobNotFound):
            await call("nobody")


async def test_a_waiting_job_is_cancelled_at_once(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    outcome = await queue.cancel(job.id)
    assert (outcome.job.status, outcome.stopping, outcome.was_done) == (JobStatus.CANCELLED, False, False)
    assert outcome.job.finished_at is not None
    assert await client.zcard(keys.queue("default")) == 0
    assert await client.exists(keys.arq_job(job.id)) == 0
    assert (await queue.cancel(job.id)).was_done


async def test_a_job_that_is_cancelled_before_its_time_has_no_time_any_more(queue: Queue) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(delay=60))
    assert job.run_at is not None
    cancelled = (await queue.cancel(job.id)).job
    assert (cancelled.status, cancelled.run_at) == (JobStatus.CANCELLED, None)


async def test_a_running_job_is_told_to_stop_and_its_worker_hears_it(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    claimed = await claim_one(client)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.control("w"))
        await pubsub.get_message(timeout=5)
        outcome_ = await queue.cancel(job.id)
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
    assert (outcome_.job.status, outcome_.stopping) == (JobStatus.CANCELLING, True)
    assert message is not None
    assert message["data"] == f"cancel {job.id}".encode()
    assert await AttemptWriter(client, claimed).finish(outcome(JobStatus.CANCELLED, b""), keep_arq_result=10)
    assert (await queue.get(job.id)).status is JobStatus.CANCELLED


async def test_a_purged_job_is_gone_and_leaves_a_tombstone_only(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(tags=["x"]))
    await queue.purge(job.id)
    with pytest.raises(JobGone):
        await queue.get(job.id)
    assert await client.keys("*") == [keys.tombstone(job.id).encode()]


async def test_a_running_job_is_purged_when_it_has_ended(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(tags=["x"]))
    claimed = await claim_one(client)
    assert (await queue.purge(job.id)).stopping
    assert (await queue.get(job.id)).status is JobStatus.CANCELLING
    await AttemptWriter(client, claimed).finish(outcome(JobStatus.CANCELLED, b""), keep_arq_result=0)
    with pytest.raises(JobGone):
        await queue.get(job.id)
    assert set(await client.keys("*")) == {keys.tombstone(job.id).encode(), keys.CONTACT.encode()}


async def test_lists_are_filtered_paged_newest_first_and_complete(queue: Queue) -> None:
    """Many jobs share a millisecond here: the cursor must not skip or repeat any."""
    made = []
    for number in range(57):
        options = SubmitOptions(tags=["even"] if number % 2 == 0 else [])
        made.append(await queue.submit("words" if number % 3 else "files", {}, options=options))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        jobs, cursor = await queue.list(limit=5, cursor=cursor)
        assert len(jobs) == 5 or cursor is None
        seen += [job.id for job in jobs]
        if cursor is None:
            break
    assert sorted(seen) == sorted(job.id for job in made)
    created = {job.id: job.created_at for job in made}
    assert [created[job_id] for job_id in seen] == sorted(created.values(), reverse=True)
    for wanted, expected in (
        (JobFilter(task="files"), {job.id for job in made if job.task == "files"}),
        (JobFilter(tag="even"), {job.id for job in made if job.tags}),
        (JobFilter(task="files", tag="even"), {job.id for job in made if job.tags and job.task == "files"}),
        (JobFilter(status="queued"), {job.id for job in made}),
        (JobFilter(status="failed"), set()),
    ):
        jobs, cursor = await queue.list(wanted, limit=1000)
        assert {job.id for job in jobs} == expected
        assert cursor is None


@pytest.mark.parametrize("cursor", ["x", "!!", "MTIz", "OjE", "MToy:", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk6YQ"])
async def test_a_cursor_that_was_never_given_is_refused(queue: Queue, cursor: str) -> None:
    with pytest.raises(InvalidParameter):
        await queue.list(cursor=cursor)


async def test_the_status_index_follows_the_job(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})

    async def statuses() -> list[str]:
        return [status for status in JobStatus if (await queue.list(JobFilter(status=status)))[0]]

    assert await statuses() == ["queued"]
    claimed = await claim_one(client)
    assert await statuses() == ["running"]
    await AttemptWriter(client, claimed).finish(outcome(), keep_arq_result=10)
    assert await statuses() == ["succeeded"]
    assert (await queue.get(job.id)).result == 1


async def test_an_attempt_that_lost_its_job_can_write_nothing(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    zombie = await claim_one(client)
    await client.delete(keys.in_progress(job.id))  # the lease ran out
    await client.zadd(keys.queue("default"), {job.id: 1})
    heir = await claim_one(client)
    assert (heir.attempt, zombie.attempt) == (2, 1)
    before = await client.hgetall(keys.record(job.id))  # type: ignore[misc]
    writer = AttemptWriter(client, zombie)
    assert not await writer.finish(outcome(result=b'"zombie"'), keep_arq_result=10)
    assert not await writer.release()
    assert not await writer.adopt(task="other", data={}, enqueued_ms=1, ttl=1, max_attempts=1)
    assert await client.hgetall(keys.record(job.id)) == before  # type: ignore[misc]
    assert await AttemptWriter(client, heir).finish(outcome(result=b'"heir"'), keep_arq_result=10)
    assert (await queue.get(job.id)).result == "heir"


async def test_a_released_job_is_queued_again_and_its_attempt_does_not_count(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    assert await AttemptWriter(client, await claim_one(client)).release()
    released = await queue.get(job.id)
    assert (released.status, released.attempt, released.worker) == (JobStatus.QUEUED, 0, None)
    assert (await claim_one(client)).attempt == 1


async def test_a_claim_takes_no_more_than_asked_and_each_job_once(queue: Queue, client: ArqRedis) -> None:
    made = [(await queue.submit("words", {})).id for _ in range(10)]
    first, _ = await claim(client, queue="default", worker_id="a", slots=7, lease=10)
    second, _ = await claim(client, queue="default", worker_id="b", slots=7, lease=10)
    assert (len(first), len(second)) == (7, 3)
    assert sorted(job.id for job in first + second) == sorted(made)


async def test_stock_arq_clients_read_the_status(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    stock = ArqJob(job.id, client)
    assert await stock.status() is ArqStatus.queued
    claimed = await claim_one(client)
    assert await stock.status() is ArqStatus.in_progress
    await AttemptWriter(client, claimed).finish(outcome(), keep_arq_result=10)
    assert await stock.status() is ArqStatus.complete
    delayed = await queue.submit("words", {}, options=SubmitOptions(delay=60))
    assert await ArqJob(delayed.id, client).status() is ArqStatus.deferred


async def test_the_sweep_takes_expired_jobs_out_of_every_index(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {}, options=SubmitOptions(tags=["x", "y"], ttl=0.001))
    await AttemptWriter(client, await claim_one(client)).finish(outcome(), keep_arq_result=0)
    kept = await queue.submit("words", {}, options=SubmitOptions(tags=["x"]))
    # The record's own expiry is Redis's business; the sweep's clock is the index.
    await client.delete(keys.record(job.id), keys.log(job.id))
    gone = await store.sweep(client, queues=["default"])
    while not gone:  # the millisecond is not over yet
        gone = await store.sweep(client, queues=["default"])
    assert gone == [job.id]
    for index in (keys.index(), keys.index(task="words"), keys.index(tag="x"), keys.EXPIRY):
        assert [member.decode().split()[0] for member in await client.zrange(index, 0, -1)] == [kept.id]
    assert await client.exists(keys.index(tag="y"), keys.index(status="succeeded")) == 0


async def test_the_sweep_removes_abort_marks_of_jobs_that_nobody_waits_for(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {})
    await client.zadd(keys.ARQ_ABORT, {"nobody": 1, job.id: 1})
    await store.sweep(client, queues=["default"])
    assert await client.zrange(keys.ARQ_ABORT, 0, -1) == [job.id.encode()]


async def test_nothing_is_stored_without_an_owner_or_an_expiry(queue: Queue, client: ArqRedis) -> None:
    """Every key either expires, or is an index whose entries the sweep removes, or the queue itself."""
    indexes = {keys.INDEX, keys.EXPIRY, keys.ARQ_ABORT}
    prefixes = (keys.INDEX_STATUS, keys.INDEX_TASK, keys.INDEX_TAG, keys.INDEX_WORDS)
    for number in range(4):
        await queue.submit("words", {}, options=SubmitOptions(tags=[f"t{number}"], delay=60 if number == 3 else 0))
    claimed, _ = await claim(client, queue="default", worker_id="w", slots=3, lease=10)
    await AttemptWriter(client, claimed[0]).finish(outcome(), keep_arq_result=10)
    await AttemptWriter(client, claimed[1]).release()
    await queue.cancel(claimed[2].id)
    await queue.purge(claimed[1].id)
    await events.read_epoch(client)
    for key in await client.keys("*"):
        name = key.decode()
        if name in indexes or name.startswith(prefixes) or key in LIVES_AS_LONG_AS_THE_DATA:
            continue
        assert await client.pttl(key) > 0, name
    expiring = {member.decode().split()[0] for member in await client.zrange(keys.EXPIRY, 0, -1)}
    assert expiring == {member.decode() for member in await client.zrange(keys.INDEX, 0, -1)}


async def test_scripts_survive_a_flush_of_the_script_cache(queue: Queue, client: ArqRedis) -> None:
    await queue.submit("words", {})
    await client.script_flush()
    await queue.submit("words", {})
    assert await client.zcard(keys.queue("default")) == 2


async def test_a_submit_that_redis_executes_too_late_is_not_stored(queue: Queue, client: ArqRedis) -> None:
    """Its caller was told that it failed: it must not happen afterwards."""
    await queue.submit("words", {})
    queue._clock.set(int(time.time() * 1000) - 60_000)  # as if it had waited for a minute on the way
    job = await queue.submit("words", {})  # refused, then tried again with the clock set
    assert job.status is JobStatus.QUEUED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobstream.queue.PATIENCE_SECONDS", -60.0)
        with pytest.raises(RedisUnavailable):
            await queue.submit("words", {}, job_id="late")
    assert await client.exists(keys.record("late"), keys.arq_job("late")) == 0
    assert await client.zcard(keys.queue("default")) == 2


@pytest.mark.parametrize(("lines", "size", "kept"), [(5_100, 10, 5_000), (60, 100_000, 41), (3, 5_000_000, 1)])
async def test_a_log_is_capped_by_its_entries_and_by_their_bytes(
    client: ArqRedis, lines: int, size: int, kept: int
) -> None:
    job = await SpeakingJob.start(client)
    for start in range(0, lines, 100):
        await job.chunk(*("x" * size for _ in range(start, min(lines, start + 100))))
    entries = cast("list[bytes]", await client.lrange(keys.log(job.id), 0, -1))  # type: ignore[misc]
    assert len(entries) == kept
    assert parse_message(entries[-1]).version == lines + 2
    assert int(await client.hget(keys.record(job.id), "log_bytes") or 0) == sum(map(len, entries))  # type: ignore[misc]
