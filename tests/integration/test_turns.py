"""Turns: of those who have work waiting in a queue everybody gets a share, whoever has how much of it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import TaskRaised
from jobstream.fake import FakeSource
from jobstream.job import JobStatus
from jobstream.limits import TenantLimits, set_limits
from jobstream.problem import job_problem
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import RedisSource
from jobstream.serialize import deserialize
from jobstream_workers.claim import CLAIM_MAX, ClaimedJob, claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.working import lease_over

DONE = Outcome(JobStatus.SUCCEEDED, b"", b"null")
FAILURE = job_problem(TaskRaised("ValueError", "", ""), attempt=1)
BACKLOG = 10_000
"""On fakeredis, which takes a minute for as many, a tenth."""


async def backlog(queue: Queue, owner: str, count: int, *, task: str = "words", priority: int = 0) -> None:
    """Jobs `<owner>0`, `<owner>1`, … that wait."""
    options = SubmitOptions(priority=priority)
    await queue.submit_many(
        [Submission(task, {}, options, owner=owner, job_id=f"{owner}{number:05}") for number in range(count)]
    )


async def taken(
    client: Redis, slots: int = 1, *, lease: float = 60, worker_id: str = "w", owner_running: int = 0, tasks: str = ""
) -> list[ClaimedJob]:
    """What a worker with so many free slots would run now."""
    jobs, _ = await claim(
        client,
        queue="default",
        worker_id=worker_id,
        slots=slots,
        lease=lease,
        owner_running=owner_running,
        tasks=tasks,
        limits={"limited": 2},
    )
    return jobs


async def order(client: Redis, slots: int = 1) -> list[str]:
    """The ids of all jobs that can be had, in the order of their turns."""
    found: list[str] = []
    while jobs := await taken(client, slots):
        found += [job.id for job in jobs]
    return found


async def a_millisecond_later(client: Redis) -> None:
    """What is due in one millisecond has no order but that of the ids."""
    began = await client.time()
    while (await client.time())[1] // 1000 == began[1] // 1000:
        pass


async def finish(client: Redis, job: ClaimedJob) -> None:
    """End a job well."""
    assert await AttemptWriter(client, job).finish(DONE, keep_arq_result=0)


async def nothing_is_left(client: Redis) -> None:
    """No key says that anything waits."""
    for prefix in (keys.SEATS, keys.ROOM, keys.RUNNING):
        assert await client.keys(prefix + "*") == []
    assert await client.zcard(keys.queue("default")) == 0


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


@pytest.mark.parametrize("slots", [1, 7, CLAIM_MAX])
async def test_behind_ten_thousand_of_another_one_waits_for_one_of_them(
    source: RedisSource, queue: Queue, client: ArqRedis, slots: int
) -> None:
    await backlog(queue, "a", BACKLOG // (10 if isinstance(source, FakeSource) else 1))
    await taken(client, 20)
    for number in range(20):
        await queue.submit("words", {}, owner="b", job_id=f"b{number}")
        ids = [job.id for job in await taken(client, max(2, slots))]
        assert f"b{number}" in ids[:2]


async def test_alone_one_gets_all_and_in_the_order_of_submission(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 500)
    jobs = await taken(client, CLAIM_MAX)
    assert [job.id for job in jobs] == [f"a{number:05}" for number in range(CLAIM_MAX)]
    assert await order(client, 7) == [f"a{number:05}" for number in range(CLAIM_MAX, 500)]


async def test_turns_are_taken_one_by_one(queue: Queue, client: ArqRedis) -> None:
    for owner in "abc":
        await backlog(queue, owner, 30)
    found = await order(client, 10)
    assert len(found) == len(set(found)) == 90
    for at in range(0, 90, 3):
        assert sorted(job_id[0] for job_id in found[at : at + 3]) == ["a", "b", "c"]


async def test_a_weight_is_a_share(queue: Queue, client: ArqRedis) -> None:
    await set_limits(client, "a", TenantLimits(weight=3))
    for owner in "ab":
        await backlog(queue, owner, 400)
    ids = [job.id for _ in range(4) for job in await taken(client, 50)]
    assert Counter(job_id[0] for job_id in ids) == {"a": 150, "b": 50}
    assert [job_id for job_id in ids if job_id[0] == "a"] == [f"a{number:05}" for number in range(150)]


async def test_a_weight_that_changes_counts_at_once(queue: Queue, client: ArqRedis) -> None:
    for owner in "ab":
        await backlog(queue, owner, 400)
    await set_limits(client, "a", TenantLimits(weight=4))
    await queue.submit("words", {}, owner="a", job_id="last")
    ids = [job.id for job in await taken(client, 50)]
    assert Counter(job_id[0] for job_id in ids) == {"a": 40, "b": 10}
    await set_limits(client, "a", TenantLimits())
    await taken(client, 10)
    ids = [job.id for job in await taken(client, 50)]
    assert Counter(job_id[0] for job_id in ids) == {"a": 25, "b": 25}


async def test_a_priority_counts_among_the_owners_own(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 5)
    for priority in (1, 9, 5):
        await queue.submit("words", {}, options=SubmitOptions(priority=priority), owner="a", job_id=f"p{priority}")
    await queue.submit("words", {}, owner="b", job_id="b")
    await queue.submit("words", {}, options=SubmitOptions(priority=9), owner="a", job_id="pp9")
    assert await order(client) == ["p9", "b", "pp9", "p5", "p1", *(f"a{number:05}" for number in range(5))]


async def test_a_priority_counts_among_several_seats(queue: Queue, client: ArqRedis) -> None:
    await set_limits(client, "a", TenantLimits(weight=3))
    await backlog(queue, "a", 6)
    for priority in (1, 9, 5, 7):
        await queue.submit("words", {}, options=SubmitOptions(priority=priority), owner="a", job_id=f"p{priority}")
    assert await order(client) == ["p9", "p7", "p5", "p1", *(f"a{number:05}" for number in range(6))]


async def test_jobs_of_nobody_stand_by_time_among_them(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 100)
    await queue.submit("words", {}, job_id="nobodys")
    assert "nobodys" in [job.id for job in await taken(client, 3)]


async def test_what_was_delayed_waits_for_a_turn_too(queue: Queue, client: ArqRedis) -> None:
    options = SubmitOptions(delay=0.05, priority=3)
    await queue.submit_many([Submission("words", {}, options, owner="a", job_id=f"a{n:05}") for n in range(300)])
    for number in range(300):
        await lease_over(client, f"a{number:05}")
    await queue.submit("words", {}, owner="b", job_id="b0")
    first = [job.id for job in await taken(client, 2)]
    assert "b0" in first
    found = [*first, *await order(client, 10)]
    assert sorted(found) == sorted(["b0", *(f"a{number:05}" for number in range(300))])


async def test_a_cancelled_jobs_seat_is_the_next_ones(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 10)
    assert (await queue.cancel("a00000")).was_done is False
    await queue.purge("a00001")
    await queue.cancel("a00007")
    assert await order(client) == [f"a{number:05}" for number in (2, 3, 4, 5, 6, 8, 9)]


async def test_a_job_that_is_run_again_waits_behind_the_owners_others(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 4)
    await queue.cancel("a00000")
    await a_millisecond_later(client)
    await queue.retry("a00000")
    assert await order(client) == ["a00001", "a00002", "a00003", "a00000"]


async def test_a_failed_attempts_next_one_takes_its_turn(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 3)
    [job] = await taken(client)
    await a_millisecond_later(client)
    assert await AttemptWriter(client, job).retry(FAILURE, after=0)
    assert await order(client) == ["a00001", "a00002", "a00000"]


async def test_what_is_given_back_is_the_owners_next(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 5)
    jobs = await taken(client, 2)
    for job in jobs:
        await AttemptWriter(client, job).release()
    found = await order(client)
    assert sorted(found) == [f"a{number:05}" for number in range(5)]
    assert found.index("a00000") < found.index("a00001") < found.index("a00003")


async def test_a_dead_workers_job_waits_for_no_turn(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 100)
    [dead] = await taken(client, lease=0.05, worker_id="dead")
    await lease_over(client, dead.id)
    assert dead.id in [job.id for job in await taken(client, 2)]
    assert len(await order(client, 50)) == 98


async def test_what_a_stock_worker_took_does_not_block_the_others(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 5)
    await client.set(keys.in_progress("a00000"), b"1")
    assert await order(client) == [f"a{number:05}" for number in range(1, 5)]
    await client.zrem(keys.queue("default"), "a00000")
    await client.delete(keys.in_progress("a00000"), keys.arq_job("a00000"))
    await backlog_seat_is_free(queue, client)


async def backlog_seat_is_free(queue: Queue, client: ArqRedis) -> None:
    """The next job is taken, whatever became of the one before."""
    await queue.submit("words", {}, owner="a", job_id="next")
    assert [job.id for job in await taken(client)] == ["next"]


async def test_arqs_own_eyes_see_a_job_in_the_room(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 2)
    options = {"redis": client, "_queue_name": keys.queue("default"), "_deserializer": deserialize}
    seated, waits = (ArqJob(f"a0000{number}", **options) for number in range(2))  # type: ignore[arg-type]
    assert await seated.status() is ArqStatus.queued
    assert await waits.status() is ArqStatus.deferred


async def test_nothing_is_lost_with_seats_and_rooms(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 50)
    for key in await client.keys(keys.SEATS + "*") + await client.keys(keys.ROOM + "*"):
        await client.delete(key)
    found = await order(client)
    assert found == ["a00000"]
    for number in range(1, 50):  # as if the time were up for which a job in a room is not due
        await client.zadd(keys.queue("default"), {f"a{number:05}": 1000 + number})
    assert sorted(await order(client)) == [f"a{number:05}" for number in range(1, 50)]


@pytest.mark.parametrize("count", [10, 300])
async def test_a_limited_task_does_not_hold_up_the_owners_others(queue: Queue, client: ArqRedis, count: int) -> None:
    await backlog(queue, "a", count, task="limited")
    for number in range(3):
        await queue.submit("words", {}, owner="a", job_id=f"w{number}")
    first = await taken(client, 10)
    assert [job.id for job in first] == ["a00000", "a00001", "w0", "w1", "w2"]
    await finish(client, first[0])
    assert [job.id for job in await taken(client, 10)] == ["a00002"]


async def test_a_lacking_task_does_not_hold_up_the_owners_others(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 5, task="new")
    await queue.submit("words", {}, owner="a", job_id="w0")
    jobs, _ = await claim(client, queue="default", worker_id="w", slots=10, lease=60, tasks=" words ", missing=1000)
    assert [job.id for job in jobs] == ["w0"]
    assert sorted(await order(client)) == [f"a{number:05}" for number in range(5)]


async def test_no_more_of_an_owners_jobs_run_than_it_may(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 20)
    await backlog(queue, "b", 20)
    await set_limits(client, "b", TenantLimits(running=5))
    first = await taken(client, 20, owner_running=2)
    assert Counter(job.id[0] for job in first) == {"a": 2, "b": 5}
    assert await taken(client, 20, owner_running=2, worker_id="other") == []
    await finish(client, next(job for job in first if job.id[0] == "a"))
    assert [job.id for job in await taken(client, 20, owner_running=2)] == ["a00002"]
    await set_limits(client, "a", TenantLimits(running=0))
    assert len(await taken(client, 50, owner_running=2)) == 17


async def test_a_dead_workers_jobs_do_not_count_for_their_owner(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 5)
    dead = await taken(client, 2, owner_running=2, lease=0.05, worker_id="dead")
    for job in dead:
        await lease_over(client, job.id)
    again = await taken(client, 2, owner_running=2)
    assert len(again) == 2
    assert await taken(client, 2, owner_running=2) == []


async def test_whatever_happens_each_job_runs_once_and_nothing_is_left(queue: Queue, client: ArqRedis) -> None:
    rng = random.Random(7)
    running: list[ClaimedJob] = []
    ended: Counter[str] = Counter()
    submitted, cancelled = 0, set()
    await set_limits(client, "b", TenantLimits(weight=3, running=4))
    for _ in range(600):
        match rng.randrange(8):
            case 0 | 1:
                owner = rng.choice(["a", "a", "b", "c", None])
                options = SubmitOptions(priority=rng.choice([0, 0, 5]), delay=rng.choice([0, 0, 0.001]))
                names = [f"{owner}{submitted + number}" for number in range(rng.randrange(1, 6))]
                task = rng.choice(["words", "words", "limited"])
                await queue.submit_many([Submission(task, {}, options, owner=owner, job_id=name) for name in names])
                submitted += len(names)
            case 2 | 3:
                running += await taken(client, rng.randrange(1, 6), owner_running=6)
            case 4 | 5 if running:
                job = running.pop(rng.randrange(len(running)))
                await finish(client, job)
                ended[job.id] += 1
            case 6 if running:
                job = running.pop(rng.randrange(len(running)))
                if rng.random() < 0.5:
                    assert await AttemptWriter(client, job).retry(FAILURE, after=0)
                else:
                    assert await AttemptWriter(client, job).release()
            case 7:
                jobs, _ = await queue.list(limit=1000)
                waiting = [job for job in jobs if job.status in (JobStatus.QUEUED, JobStatus.RETRYING)]
                if waiting:
                    job_id = rng.choice(waiting).id
                    await queue.cancel(job_id)
                    cancelled.add(job_id)
    while running or await client.zcard(keys.queue("default")):
        running += await taken(client, 10, owner_running=6)
        for job in running:
            await finish(client, job)
            ended[job.id] += 1
        running = []
    assert set(ended.values()) == {1}
    assert len(ended) + len(cancelled) == submitted
    assert not cancelled & set(ended)
    await nothing_is_left(client)


async def test_a_limited_task_is_shared_too(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 300, task="limited")
    running = await taken(client, 10)
    assert [job.id for job in running] == ["a00000", "a00001"]
    await queue.submit("limited", {}, owner="b", job_id="b0")
    await queue.submit("limited", {}, owner="b", job_id="b1")
    await queue.submit("limited", {}, job_id="nobodys")
    assert await taken(client, 10) == []
    await queue.cancel("a00003")
    found: list[str] = []
    for _ in range(7):
        await finish(client, running.pop(0))
        running += (jobs := await taken(client, 10))
        found += [job.id for job in jobs]
    assert len(found) == 7
    assert set(found[:4]) >= {"b0", "nobodys"}
    assert "b1" in found[:5]
    assert [job_id for job_id in found if job_id[0] == "a"] == ["a00002", "a00004", "a00005", "a00006"]
    while running:
        await finish(client, running.pop())
        running += await taken(client, 10)
    await nothing_is_left(client)
