"""Owners: whose a job is, who finds it, and what is said of it to everybody else."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis

from jobstream import keys, store
from jobstream.errors import InvalidParameter, JobConflict, JobGone, JobNotFound
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.store import JobFilter
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.integration.test_queue import outcome


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


async def index_keys(client: ArqRedis) -> set[str]:
    return {key.decode() for key in await client.keys("jobstream:jobs*")} | {
        key.decode() for key in await client.keys(keys.EXPIRY)
    }


async def end(client: ArqRedis, ended: Outcome) -> None:
    [job], _ = await claim(client, queue="default", worker_id="w", slots=1, lease=10)
    assert await AttemptWriter(client, job).finish(ended, keep_arq_result=0)


async def test_the_record_names_the_owner(queue: Queue) -> None:
    job = await queue.submit("words", {}, owner="acme")
    assert job.owner == "acme"
    assert await queue.get(job.id) == job
    assert await queue.get(job.id, owner="acme") == job


async def test_another_owners_job_is_answered_for_like_one_that_never_was(queue: Queue) -> None:
    job = await queue.submit("words", {}, owner="acme")
    nobodys = await queue.submit("words", {})
    for job_id in (job.id, nobodys.id, "never"):
        for call in (queue.get, queue.cancel, queue.retry, queue.purge, queue.check_visible):
            with pytest.raises(JobNotFound) as raised:
                await call(job_id, owner="globex")
            assert raised.value.detail == f"There is no job {job_id!r}"
    assert (await queue.get(job.id)).version == 1
    assert (await queue.get(nobodys.id)).version == 1


async def test_the_owner_may_do_all(queue: Queue) -> None:
    job = await queue.submit("words", {}, owner="acme")
    await queue.check_visible(job.id, owner="acme")
    with pytest.raises(JobConflict):
        await queue.retry(job.id, owner="acme")
    await queue.cancel(job.id, owner="acme")
    assert (await queue.retry(job.id, owner="acme")).owner == "acme"
    await queue.purge(job.id, owner="acme")
    with pytest.raises(JobGone):
        await queue.get(job.id, owner="acme")


async def test_only_those_who_saw_a_job_are_told_that_it_was_purged(queue: Queue) -> None:
    job = await queue.submit("words", {}, owner="acme")
    await queue.purge(job.id)
    for told in ("acme", None):
        with pytest.raises(JobGone):
            await queue.get(job.id, owner=told)
    with pytest.raises(JobNotFound):
        await queue.get(job.id, owner="globex")


async def test_a_list_of_an_owner_shows_and_counts_no_others(queue: Queue) -> None:
    mine = [(await queue.submit("words", {}, owner="acme", options=SubmitOptions(tags=["x"]))).id for _ in range(3)]
    for _ in range(5):
        await queue.submit("words", {}, owner="globex", options=SubmitOptions(tags=["x"]))
    await queue.submit("words", {}, options=SubmitOptions(tags=["x"]))
    for wanted in (
        JobFilter(owner="acme"),
        JobFilter(owner="acme", status="queued"),
        JobFilter(owner="acme", task="words", tag="x"),
    ):
        first, cursor = await queue.list(wanted, limit=2)
        rest, end = await queue.list(wanted, limit=2, cursor=cursor)
        assert {job.id for job in [*first, *rest]} == set(mine)
        assert (len(first), len(rest), end) == (2, 1, None)
    assert await queue.list(JobFilter(owner="acme", task="primes")) == ([], None)
    assert await queue.list(JobFilter(owner="nobody")) == ([], None)
    everything, _ = await queue.list()
    assert len(everything) == 9


async def test_a_cursor_of_one_owner_shows_another_nothing(queue: Queue) -> None:
    for owner in ("acme", "globex", "acme", "globex"):
        await queue.submit("words", {}, owner=owner)
    _, cursor = await queue.list(JobFilter(owner="acme"), limit=1)
    page, _ = await queue.list(JobFilter(owner="globex"), cursor=cursor)
    assert {job.owner for job in page} <= {"globex"}


async def test_an_idempotency_key_is_its_owners(queue: Queue) -> None:
    ids = set()
    for owner in (None, "acme", "globex"):
        for _ in range(2):
            job, _ = await queue.submit_once("words", {}, owner=owner, key="words:k", fingerprint=str(owner))
            assert job.owner == owner
            ids.add(job.id)
    assert len(ids) == 3


@pytest.mark.parametrize("owner", ["", "a b", "a\n", "é", "x" * 129])
async def test_a_name_that_no_index_can_hold_is_refused(queue: Queue, owner: str) -> None:
    with pytest.raises(InvalidParameter):
        await queue.submit("words", {}, owner=owner)


@pytest.mark.parametrize("owner", ["=", "acme", "auth0|64:x/y", "=words", "a@example.org"])
async def test_nothing_is_left_of_a_job_whose_record_expired(queue: Queue, client: ArqRedis, owner: str) -> None:
    for ended in (None, outcome()):
        job = await queue.submit("words", {}, owner=owner, options=SubmitOptions(tags=["x", "words"]))
        assert await client.zscore(keys.index(owner=owner), job.id) is not None
        if ended is not None:
            await end(client, ended)
        await client.delete(keys.record(job.id))
        for member in await client.zrange(keys.EXPIRY, 0, -1):
            await client.zadd(keys.EXPIRY, {member: 1})
        assert await store.sweep(client, queues=["default"]) == [job.id]
        assert await index_keys(client) == set()
        await client.delete(keys.queue("default"))


async def test_nothing_is_left_of_a_job_that_was_purged(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {}, owner="acme", options=SubmitOptions(tags=["x"]))
    await queue.cancel(job.id)
    await queue.retry(job.id)
    await queue.purge(job.id)
    assert await index_keys(client) == set()


async def test_a_job_without_an_owner_has_no_index_more(queue: Queue, client: ArqRedis) -> None:
    await queue.submit("words", {})
    assert await client.keys(keys.INDEX_OWNER + "*") == []


async def test_each_owners_jobs_are_indexed_by_status_as_well(queue: Queue, client: ArqRedis) -> None:
    async def owned() -> set[str]:
        return {key.decode() for key in await client.keys(keys.INDEX_OWNED + "*")}

    job = await queue.submit("words", {}, owner="acme", options=SubmitOptions(delay=60))
    assert await owned() == {keys.INDEX_OWNED + "scheduled acme"}
    await queue.cancel(job.id)
    assert await owned() == {keys.INDEX_OWNED + "cancelled acme"}
    await queue.retry(job.id)
    assert await owned() == {keys.INDEX_OWNED + "queued acme"}
    await end(client, outcome())
    assert await owned() == {keys.INDEX_OWNED + "succeeded acme"}
    for status, listed in (("succeeded", [job.id]), ("queued", [])):
        jobs, _ = await queue.list(JobFilter(status=status, owner="acme"))
        assert [each.id for each in jobs] == listed
    await queue.purge(job.id)
    assert await owned() == set()


async def test_a_rare_status_of_an_owner_is_one_page_away(queue: Queue, client: ArqRedis) -> None:
    rare = await queue.submit("words", {}, owner="acme")
    await queue.cancel(rare.id)
    for _ in range(10):  # on a busy machine a batch of all would come too late
        await queue.submit_many([Submission("words", {}, owner="acme") for _ in range(1_000)])
    jobs, cursor = await queue.list(JobFilter(status="cancelled", owner="acme"))
    assert ([job.id for job in jobs], cursor) == ([rare.id], None)


async def test_an_owners_unfinished_jobs_are_found_among_its_ended_ones(queue: Queue, client: ArqRedis) -> None:
    waits = [(await queue.submit("words", {}, owner="acme", options=SubmitOptions(delay=600))).id for _ in range(2)]
    await queue.submit_many([Submission("words", {}, owner="acme") for _ in range(9)])
    await queue.submit("words", {}, owner="globex")
    for _ in range(10):
        await end(client, outcome())
    [running] = [(await queue.submit("words", {}, owner="acme")).id]
    await claim(client, queue="default", worker_id="w", slots=1, lease=10)
    found, complete = await store.unfinished_ids(client, JobFilter(owner="acme"), most=5)
    assert (sorted(found), complete) == (sorted([*waits, running]), True)
    found, complete = await store.unfinished_ids(client, JobFilter(owner="acme", status="running"), most=5)
    assert (found, complete) == ([running], True)
    assert await store.unfinished_ids(client, JobFilter(owner="acme"), most=2) == ([running, max(waits)], False)
