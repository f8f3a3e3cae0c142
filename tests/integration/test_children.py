"""Jobs that running jobs submit: each once in all attempts, counted by their parent, ended with it."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.batch import Batch, batch_from_record
from jobstream.batches import find_batch, list_batch
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream_workers.loader import load_tasks
from tests.working import Settings, ended, in_status, working

TASKS = load_tasks(["tests.child_tasks"], entry_points=False)


async def family_of(client: ArqRedis, job: Job) -> tuple[Batch, list[Job]]:
    assert job.children is not None
    record = await find_batch(client, job.children)
    return batch_from_record(record), (await list_batch(client, record)).jobs


@pytest.mark.parametrize("task", ["on_loop", "in_thread", "in_process"])
async def test_every_executor_submits_children_and_waits_for_them(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings, task: str
) -> None:
    parent = await queue.submit(task, {"count": 3}, owner="ada")
    async with working(source, settings(max_jobs=1), tasks=TASKS):  # the parent's slot is free while it waits
        job = await ended(queue, parent)
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, [0, 2, 4]), job.error
    assert job.progress is not None
    assert (job.progress.current, job.progress.total, job.progress.percent) == (3, 3, 100)
    batch, children = await family_of(client, job)
    assert (batch.status, batch.progress.counts.succeeded, batch.owner) == ("succeeded", 3, "ada")
    assert {(child.parent, child.owner, child.batch) for child in children} == {(job.id, "ada", batch.id)}


async def test_a_second_attempt_has_the_children_of_the_first(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    parent = await queue.submit("twice", {}, max_attempts=2)
    async with working(source, settings(), tasks=TASKS):
        job = await ended(queue, parent)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), job.error
    _, children = await family_of(client, job)
    assert sorted(job.result) == sorted(child.id for child in children)
    assert len(set(job.result)) == 4
    assert sorted(child.result for child in children) == [2, 2, 2, 4]
    assert {child.attempt for child in children} == {1}


async def test_a_child_that_failed_is_run_again_in_the_next_attempt(
    queue: Queue, source: RedisSource, settings: Settings
) -> None:
    parent = await queue.submit("insists", {}, max_attempts=2)
    async with working(source, settings(), tasks=TASKS):
        assert (await ended(queue, parent)).result == "failed 2"


async def test_who_is_cancelled_takes_the_children_along(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    parent = await queue.submit("tree", {"levels": 2})
    async with working(source, settings(), tasks=TASKS):
        job, line = parent, [parent]
        while job.task != "hangs":
            job = await child_of(queue, client, job)
            line.append(job)
        await in_status(queue, job, JobStatus.RUNNING)
        await queue.cancel(parent.id)
        ends = [await ended(queue, each) for each in line]
    assert [each.task for each in ends] == ["tree", "tree", "tree", "hangs"]
    assert {each.status for each in ends} == {JobStatus.CANCELLED}
    batch, _ = await family_of(client, ends[0])
    assert (batch.status, batch.progress.counts.cancelled) == ("cancelled", 1)


async def child_of(queue: Queue, client: ArqRedis, job: Job) -> Job:
    """Its only child, as soon as it has one."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(job.id))
        while (found := await queue.get(job.id)).children is None:
            assert await pubsub.get_message(timeout=20) is not None
    _, (child,) = await family_of(client, found)
    return child


async def test_there_are_so_many_levels_and_no_more(queue: Queue, source: RedisSource, settings: Settings) -> None:
    parent = await queue.submit("tree", {"levels": 9})
    async with working(source, settings(), tasks=TASKS):
        assert "5 levels" in (await ended(queue, parent)).result


async def test_a_child_is_stored_before_its_parent_ends(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings
) -> None:
    parent = await queue.submit("forgets", {})
    async with working(source, settings(), tasks=TASKS):
        job = await ended(queue, parent)
        _, (child,) = await family_of(client, job)
        assert (await ended(queue, child)).result == 2
    assert (await queue.get(parent.id)).version == job.version, "nothing is said of a job that has ended"


async def test_a_job_that_says_its_own_progress_keeps_it(queue: Queue, source: RedisSource, settings: Settings) -> None:
    parent = await queue.submit("counts", {})
    async with working(source, settings(), tasks=TASKS):
        job = await ended(queue, parent)
    assert job.progress is not None
    assert (job.progress.current, job.progress.total, job.progress.message) == (1, 4, "mine")


async def test_a_job_that_says_a_message_keeps_that(queue: Queue, source: RedisSource, settings: Settings) -> None:
    parent = await queue.submit("speaks", {})
    async with working(source, settings(), tasks=TASKS):
        job = await ended(queue, parent)
    assert job.progress is not None
    assert (job.progress.current, job.progress.total, job.progress.message) == (2, 2, '"mine"')


async def test_waiting_can_have_an_end(queue: Queue, source: RedisSource, settings: Settings) -> None:
    parent = await queue.submit("impatient", {})
    async with working(source, settings(), tasks=TASKS):
        assert (await ended(queue, parent)).result == "over"


async def test_a_child_that_cannot_be_stored_fails_the_parent_that_does_not_look(
    queue: Queue, source: RedisSource, settings: Settings
) -> None:
    parent = await queue.submit("unheard", {})
    async with working(source, settings(), tasks=TASKS):
        job = await ended(queue, parent)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, "unknown-task")
