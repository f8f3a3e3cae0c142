"""The backlog: what waits in which queue, and for how long; at a price that has a bound."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.backlog import Backlog, read_backlog
from jobstream.catalogue import WorkerInfo, beat
from jobstream.job import JobStatus
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter, Outcome

pytestmark = pytest.mark.timeout(60)

DONE = Outcome(JobStatus.SUCCEEDED, b"", b"null")


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


async def backlog_of(queue: Queue) -> Backlog:
    return await read_backlog(queue.client, ["default"])


async def aged(queue: Queue, job_id: str, seconds: float) -> None:
    """Let the job have been due for so long."""
    await queue.client.zincrby(keys.queue("default"), -seconds * 1000, job_id)


async def test_an_empty_queue_has_no_backlog(queue: Queue) -> None:
    found = await backlog_of(queue)
    assert found.queues["default"] == (0, 0, 0, 0.0, 0)
    assert (found.workers, found.mailbag) == (0, 0)
    assert set(found.statuses.values()) == {0}


async def test_it_tells_jobs_that_wait_from_those_that_run_or_are_scheduled(queue: Queue) -> None:
    for _ in range(3):
        await queue.submit("words", {})
    for _ in range(2):
        await queue.submit("words", {}, options=SubmitOptions(delay=100))
    (running,), _ = await claim(queue.client, queue="default", worker_id="w", slots=1, lease=60)
    found = await backlog_of(queue)
    default = found.queues["default"]
    assert (default.waiting, default.running, default.due, default.depth) == (2, 1, 3, 5)
    assert 0 <= default.oldest < 60
    counts = {status: number for status, number in found.statuses.items() if number}
    assert counts == {JobStatus.SCHEDULED: 2, JobStatus.QUEUED: 2, JobStatus.RUNNING: 1}
    await AttemptWriter(queue.client, running).finish(DONE, keep_arq_result=0)
    found = await backlog_of(queue)
    assert (found.queues["default"].due, found.statuses[JobStatus.SUCCEEDED]) == (2, 1)


async def test_the_oldest_is_found_behind_whatever_is_more_urgent(queue: Queue) -> None:
    urgent = await queue.submit("words", {}, options=SubmitOptions(priority=100))
    middle = await queue.submit("words", {}, options=SubmitOptions(priority=7))
    plain = await queue.submit("words", {})
    for job, seconds in ((urgent, 10), (middle, 5000), (plain, 300)):
        await aged(queue, job.id, seconds)
    assert 5000 <= (await backlog_of(queue)).queues["default"].oldest < 5060
    await queue.purge(middle.id)
    assert 300 <= (await backlog_of(queue)).queues["default"].oldest < 360


async def test_jobs_that_wait_for_their_owners_turn_count(queue: Queue) -> None:
    for owner, number in (("acme", 20), ("initech", 5)):
        await queue.submit_many([Submission("words", {}, owner=owner) for _ in range(number)])
    assert (await backlog_of(queue)).queues["default"].waiting == 25


async def test_jobs_whose_task_no_worker_has_are_told_apart(queue: Queue) -> None:
    job = await queue.submit("strange", {})
    await aged(queue, job.id, 100)
    taken, _ = await claim(queue.client, queue="default", worker_id="w", slots=5, lease=60, tasks=" words ")
    assert not taken
    default = (await backlog_of(queue)).queues["default"]
    assert (default.lacking, default.waiting, default.depth) == (1, 0, 1)
    assert default.oldest >= 100


async def test_queues_that_workers_serve_are_found(queue: Queue) -> None:
    worker = WorkerInfo(id="w", tasks=(), queues=("default", "low"), slots=1, running=0, started_at=0)
    await beat(queue.client, worker, [], life=60)
    await queue.submit("words", {}, options=SubmitOptions(queue="low"))
    await queue.submit("words", {}, options=SubmitOptions(queue="nobodys"))
    found = await backlog_of(queue)
    assert (found.workers, set(found.queues)) == (1, {"default", "low"})
    assert found.queues["low"].waiting == 1


async def test_however_much_there_is_it_costs_little(real_client: ArqRedis) -> None:
    queue = Queue(real_client)
    await queue.submit_many([Submission("words", {}, owner=f"owner-{number % 500}") for number in range(1000)])
    await queue.submit_many([Submission("words", {}) for _ in range(500)])
    commands = (await real_client.info("commandstats"))["cmdstat_zrangebyscore"]["calls"]
    default = (await backlog_of(queue)).queues["default"]
    commands = (await real_client.info("commandstats"))["cmdstat_zrangebyscore"]["calls"] - commands
    assert default.waiting == pytest.approx(1500, rel=0.2), "an estimate: there are more owners than are looked at"
    assert commands < 1500


async def test_it_writes_nothing(real_client: ArqRedis) -> None:
    queue = Queue(real_client)
    await queue.submit("words", {}, owner="acme")
    await backlog_of(queue)
    before = (await real_client.info("persistence"))["rdb_changes_since_last_save"]
    assert (await backlog_of(queue)).queues["default"].waiting == 1
    assert (await real_client.info("persistence"))["rdb_changes_since_last_save"] == before
