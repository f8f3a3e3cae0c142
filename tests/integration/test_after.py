"""`after`: a job runs when others have succeeded, and ends without having run when one has not, however that ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from arq.connections import ArqRedis

from jobstream import keys, store
from jobstream.batch import batch_from_record
from jobstream.batches import find_batch
from jobstream.errors import InvalidParameter, JobConflict, PayloadTooLarge, PredecessorFailed, QueueFull
from jobstream.job import Job, JobStatus
from jobstream.limits import SubmitLimits
from jobstream.problem import job_problem
from jobstream.queue import AFTER_MAX, Queue, Submission, SubmitOptions
from jobstream.redis import RedisSource
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.working import Settings, ended, error_of, working


async def after(
    queue: Queue, *ids: str, task: str = "add", owner: str | None = None, **options: float | datetime
) -> Job:
    wanted = SubmitOptions(after=ids, **options)  # type: ignore[arg-type]
    return await queue.submit(task, {"a": 1} if task == "add" else {}, options=wanted, owner=owner)


async def ready(queue: Queue, job: Job) -> bool:
    """Whether a worker would get it now."""
    jobs, _ = await claim(queue.client, queue="default", worker_id="w", slots=10, lease=10)
    return job.id in [each.id for each in jobs]


async def test_jobs_run_in_the_order_that_was_asked_for(
    queue: Queue, source: RedisSource, settings: Settings, client: ArqRedis
) -> None:
    first = await queue.submit("add", {"a": 1})
    second = await after(queue, first.id)
    third = await after(queue, second.id, first.id)
    assert (second.status, second.run_at, second.after) == (JobStatus.SCHEDULED, None, [first.id])
    assert third.after == [second.id, first.id]
    async with working(source, settings(max_jobs=1)):
        last = await ended(queue, third)
    assert last.status is JobStatus.SUCCEEDED
    jobs = [await queue.get(job.id) for job in (first, second, third)]
    times = [(job.started_at, job.finished_at) for job in jobs]
    assert [time for pair in times for time in pair] == sorted(time for pair in times for time in pair)  # type: ignore[type-var]
    assert await client.exists(keys.WAITING, *[keys.SUCCESSORS + job.id for job in jobs]) == 0


async def test_a_job_waits_for_all_of_them(queue: Queue, client: ArqRedis) -> None:
    others = [await queue.submit("add", {"a": n}) for n in range(3)]
    job = await after(queue, *[other.id for other in others], others[0].id)
    await finish(client, others[0].id, others[2].id)
    assert (await queue.get(job.id)).status is JobStatus.SCHEDULED
    await finish(client, others[1].id)
    assert (await queue.get(job.id)).status is JobStatus.QUEUED
    assert await ready(queue, job)


async def finish(client: ArqRedis, *wanted: str, status: str = "succeeded") -> None:
    """Run what is due; these end so, the others go back."""
    jobs, _ = await claim(client, queue="default", worker_id="w", slots=50, lease=10)
    for job in jobs:
        writer = AttemptWriter(client, job)
        if job.id in wanted:
            error = None if status == "succeeded" else job_problem(PredecessorFailed("x"), attempt=1)
            outcome = Outcome(status=JobStatus(status), result=b"1", error=error, arq_result=b"")
            assert await writer.finish(outcome, keep_arq_result=0)
        else:
            assert await writer.release()


@pytest.mark.parametrize("task", ["raises", "too_slow"])
async def test_what_comes_after_a_job_that_failed_fails_and_says_why(
    queue: Queue, source: RedisSource, settings: Settings, task: str
) -> None:
    first = await queue.submit(task, {})
    second = await after(queue, first.id)
    third = await after(queue, second.id)
    async with working(source, settings()):
        ends = [await ended(queue, job) for job in (second, third)]
    assert [job.status for job in ends] == ["failed", "failed"]
    assert error_of(ends[0]) == job_problem(PredecessorFailed(f"Job {first.id} failed"), attempt=0)
    assert error_of(ends[1])["detail"] == f"Job {second.id} failed"
    assert [job.attempt for job in ends] == [0, 0]


async def test_what_comes_after_a_job_that_was_cancelled_is_cancelled(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1})
    chain = [first]
    for _ in range(4):
        chain.append(await after(queue, chain[-1].id))
    await queue.cancel(first.id)
    ends = [await queue.get(job.id) for job in chain]
    assert {job.status for job in ends} == {JobStatus.CANCELLED}
    assert error_of(ends[2])["detail"] == f"Job {ends[1].id} was cancelled"
    assert await client.zcard(keys.queue("default")) == 0
    assert await client.exists(keys.WAITING) == 0


async def test_a_job_that_is_purged_leaves_nobody_waiting(queue: Queue) -> None:
    first = await queue.submit("add", {"a": 1})
    second = await after(queue, first.id)
    await queue.purge(first.id)
    assert (await queue.get(second.id)).status is JobStatus.CANCELLED


async def test_a_job_that_expires_leaves_nobody_waiting(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1})
    second = await after(queue, first.id)
    await client.delete(keys.record(first.id), keys.log(first.id), keys.arq_job(first.id))
    members = [member for member in await client.zrange(keys.EXPIRY, 0, -1) if member.startswith(first.id.encode())]
    await client.zadd(keys.EXPIRY, dict.fromkeys(members, 1))
    await store.sweep(client, queues=["default"])
    found = await queue.get(second.id)
    assert (found.status, error_of(found)["detail"]) == (JobStatus.FAILED, f"Job {first.id} has expired")


async def test_a_worker_that_dies_with_a_job_does_not_leave_others_waiting(
    queue: Queue, source: RedisSource, settings: Settings, client: ArqRedis
) -> None:
    first = await queue.submit("add", {"a": 1})
    second, third = await after(queue, first.id), await after(queue, first.id)
    jobs, _ = await claim(client, queue="default", worker_id="dead", slots=5, lease=0.1)
    assert [job.id for job in jobs] == [first.id]
    async with working(source, settings(lease_seconds=1)):
        for job in (second, third):
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED


async def test_a_job_after_one_that_has_ended_already_knows_at_once(queue: Queue, client: ArqRedis) -> None:
    first, lost = await queue.submit("add", {"a": 1}), await queue.submit("add", {"a": 2})
    await finish(client, first.id)
    await queue.cancel(lost.id)
    fine = await after(queue, first.id)
    assert (fine.status, fine.run_at) == (JobStatus.QUEUED, None)
    assert await ready(queue, fine)
    hopeless = await after(queue, first.id, lost.id)
    assert (hopeless.status, error_of(hopeless)["code"]) == (JobStatus.CANCELLED, "predecessor-failed")


async def test_nothing_is_stored_after_a_job_that_is_not_there_or_not_ones_own(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1}, owner="ada")
    before = await client.dbsize()
    for ids, owner in ((("nobody",), None), ((first.id, "nobody"), "ada"), ((first.id,), "bob")):
        with pytest.raises(InvalidParameter) as refusal:
            await after(queue, *ids, owner=owner)
        assert refusal.value.errors[0]["pointer"] == "/after"
        assert refusal.value.detail == f"There is no job '{ids[-1]}' to run after"
    assert await client.dbsize() == before
    assert (await after(queue, first.id, owner="ada")).status is JobStatus.SCHEDULED
    for wrong in (["two words"], [""], ["x"] * (AFTER_MAX + 1), [0]):
        with pytest.raises(InvalidParameter):
            await queue.submit("add", {"a": 1}, options=SubmitOptions(after=wrong))


async def test_a_waiting_job_takes_its_turn_and_its_time_when_it_is_let_go(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1}, owner="ada")
    later = datetime.now(UTC) + timedelta(hours=1)
    timed = await after(queue, first.id, run_at=later, owner="ada")
    urgent = await after(queue, first.id, priority=9, owner="ada")
    past = await after(queue, first.id, delay=0.001, priority=9)
    assert timed.run_at is not None
    assert abs(timed.run_at - later) < timedelta(seconds=1)
    assert await client.exists(keys.PROMOTE + "default") == 0
    await finish(client, first.id)
    assert (await queue.get(timed.id)).status is JobStatus.SCHEDULED
    assert (await queue.get(timed.id)).run_at == timed.run_at
    for job in (urgent, past):
        assert (await queue.get(job.id)).status is JobStatus.QUEUED
        assert (await queue.get(job.id)).run_at is None
    jobs, _ = await claim(client, queue="default", worker_id="w", slots=10, lease=10)
    assert {job.id for job in jobs} == {urgent.id, past.id}
    for job in (timed, urgent, past):
        assert 0 < await client.pttl(keys.record(job.id)) < 8 * 86_400_000
        assert 0 < await client.pttl(keys.arq_job(job.id)) < 8 * 86_400_000


async def test_a_waiting_job_can_be_cancelled_and_run_again(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1})
    second = await after(queue, first.id)
    await queue.cancel(second.id)
    again = await queue.retry(second.id)
    assert again.status is JobStatus.SCHEDULED
    await finish(client, first.id)
    assert (await queue.get(second.id)).status is JobStatus.QUEUED


async def test_who_is_run_again_does_not_revive_those_that_came_after(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1})
    second = await after(queue, first.id)
    await finish(client, first.id, status="failed")
    with pytest.raises(JobConflict, match=first.id):
        await queue.retry(second.id)
    await queue.retry(first.id)
    assert (await queue.get(second.id)).status is JobStatus.FAILED
    assert (await queue.retry(second.id)).status is JobStatus.SCHEDULED
    await finish(client, first.id)
    found = await queue.get(second.id)
    assert (found.status, found.error) == (JobStatus.QUEUED, None)
    assert await ready(queue, found)


async def test_a_submit_under_a_key_is_answered_as_at_first(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("add", {"a": 1})
    options = SubmitOptions(after=[first.id])
    job, replayed = await queue.submit_once("add", {"a": 1}, options=options, key="add:k", fingerprint="f")
    assert not replayed
    await queue.purge(first.id)
    same, replayed = await queue.submit_once("add", {"a": 1}, options=options, key="add:k", fingerprint="f")
    assert replayed
    assert (same.id, same.status, same.run_at) == (job.id, JobStatus.SCHEDULED, None)


async def test_jobs_that_wait_count_for_the_depth_of_their_queue(client: ArqRedis) -> None:
    queue = Queue(client, limits=SubmitLimits(depth=2))
    first = await queue.submit("add", {"a": 1})
    await after(queue, first.id)
    with pytest.raises(QueueFull):
        await after(queue, first.id)


async def test_in_a_batch_jobs_can_be_named_by_their_numbers(
    queue: Queue, source: RedisSource, settings: Settings, client: ArqRedis
) -> None:
    outside = await queue.submit("add", {"a": 0})
    batch, _ = await queue.submit_batch(
        [
            Submission("add", {"a": 1}),
            Submission("add", {"a": 2}, SubmitOptions(after=[0, outside.id])),
            Submission("add", {"a": 3}, SubmitOptions(after=[0])),
            Submission("add", {"a": 4}, SubmitOptions(after=[1, 2])),
        ]
    )
    last = await queue.get(batch.job_ids[3])
    assert last.after == batch.job_ids[1:3]
    whole = await after(queue, batch.batch_id)
    found = batch_from_record(await find_batch(client, batch.batch_id))
    assert (found.progress.counts.scheduled, found.progress.counts.queued) == (3, 1)
    async with working(source, settings()):
        assert (await ended(queue, whole)).status is JobStatus.SUCCEEDED
    jobs = [await queue.get(job_id) for job_id in batch.job_ids]
    assert jobs[3].started_at is not None
    assert jobs[2].finished_at is not None
    assert jobs[3].started_at >= jobs[2].finished_at
    found = batch_from_record(await find_batch(client, batch.batch_id))
    assert (found.status, found.progress.counts.succeeded) == ("succeeded", 4)


@pytest.mark.parametrize(("wrong", "number"), [([1], 1), ([2], 1), ([-1], 1), (["nobody"], 1)])
async def test_a_batch_that_names_what_is_not_before_it_is_not_stored(
    queue: Queue, client: ArqRedis, wrong: list[int | str], number: int
) -> None:
    before = await client.dbsize()
    batch = [Submission("add", {"a": n}, SubmitOptions(after=wrong if n == number else ())) for n in range(3)]
    with pytest.raises(InvalidParameter) as refusal:
        await queue.submit_batch(batch)
    assert refusal.value.errors[0]["pointer"] == f"/{number}/after"
    assert await client.dbsize() == before
    with pytest.raises(InvalidParameter):
        await queue.submit_many(batch)
    many = [Submission("add", {"a": n}, SubmitOptions(after=list(range(min(n, 900))))) for n in range(200)]
    with pytest.raises(PayloadTooLarge):
        await queue.submit_batch(many)


async def test_the_end_of_a_batch_frees_and_stops_what_comes_after_it(queue: Queue, client: ArqRedis) -> None:
    batch, _ = await queue.submit_batch([Submission("add", {"a": 1}), Submission("add", {"a": 2})])
    job = await after(queue, batch.batch_id)
    await queue.cancel(batch.job_ids[0])
    assert (await queue.get(job.id)).status is JobStatus.SCHEDULED
    await finish(client, batch.job_ids[1])
    assert (await queue.get(job.id)).status is JobStatus.CANCELLED


async def test_the_sweep_finds_what_was_forgotten(queue: Queue, client: ArqRedis) -> None:
    first, other = await queue.submit("add", {"a": 1}), await queue.submit("add", {"a": 1})
    done, lost = await after(queue, first.id), await after(queue, first.id, other.id)
    await client.delete(keys.SUCCESSORS + first.id)
    await finish(client, first.id)
    assert (await queue.get(done.id)).status is JobStatus.SCHEDULED
    await client.zadd(keys.WAITING, {done.id: 1, lost.id: 1, "nobody": 1})
    await store.sweep(client, queues=["default"])
    assert (await queue.get(done.id)).status is JobStatus.QUEUED
    assert await client.zrange(keys.WAITING, 0, -1) == [lost.id.encode()]
    await finish(client, other.id)
    assert (await queue.get(lost.id)).status is JobStatus.QUEUED


async def test_a_failure_with_thousands_behind_it_is_ended_in_slices(queue: Queue, client: ArqRedis) -> None:
    many = 2_100
    batch, _ = await queue.submit_batch(
        [Submission("add", {"a": n}, SubmitOptions(after=[0] if n else ())) for n in range(many)]
    )
    await queue.cancel(batch.job_ids[0])
    found = batch_from_record(await find_batch(client, batch.batch_id))
    assert found.progress.counts.cancelled == 2_001
    await store.sweep(client, queues=["default"])
    found = batch_from_record(await find_batch(client, batch.batch_id))
    assert (found.status, found.progress.counts.cancelled) == ("cancelled", many)
