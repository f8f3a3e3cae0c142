"""Search: jobs are found by the words of their inputs and tags, from the first job on until they are gone."""

from __future__ import annotations

import random

import pytest
from arq.connections import ArqRedis

from jobstream import keys, store
from jobstream.queue import Queue, SubmitOptions
from jobstream.search import parse_query
from jobstream.serialize import deserialize, serialize
from jobstream.store import JobFilter
from jobstream_workers.claim import claim
from jobstream_workers.worker import Worker
from jobstream_workers.writer import AttemptWriter
from tests.integration.test_queue import outcome


async def found(queue: Queue, text: str, *, limit: int = 50, **filters: str) -> list[str]:
    """The ids of all pages."""
    wanted = JobFilter(words=parse_query(text), **filters)
    ids: list[str] = []
    cursor = None
    while True:
        page, cursor = await queue.list(wanted, limit=limit, cursor=cursor)
        ids += [job.id for job in page]
        if cursor is None:
            return ids


async def test_a_job_is_found_by_all_words_of_its_input_and_tags(queue: Queue) -> None:
    hamlet = await queue.submit("words", {"text": "To be, or not to be"}, options=SubmitOptions(tags=["play:Hamlet"]))
    other = await queue.submit("words", {"text": "to do"})
    assert await found(queue, "NOT") == [hamlet.id]
    assert await found(queue, "to hamlet") == [hamlet.id]
    assert set(await found(queue, "to")) == {hamlet.id, other.id}
    assert await found(queue, "to", tag="play:Hamlet") == [hamlet.id]
    assert await found(queue, "ham") == []  # words, not their beginnings
    assert await found(queue, "to", status="running") == []


async def test_pages_are_newest_first_and_each_job_is_shown_once_whichever_index_is_walked(queue: Queue) -> None:
    rng = random.Random(7)
    colours = ("red", "green", "blue")
    made = []
    for number in range(60):
        text = " ".join(rng.sample(colours, 2))
        tags = ["even"] if number % 2 == 0 else []
        made.append(
            (
                await queue.submit(
                    "words" if number % 3 else "files", {"text": text}, options=SubmitOptions(tags=tags)
                ),
                text,
            )
        )
    newest_first = sorted(made, key=lambda pair: (pair[0].created_at, pair[0].id), reverse=True)
    for text in ("red", "red green", "blue"):
        for filters in ({}, {"task": "files"}, {"tag": "even"}, {"task": "files", "tag": "even"}):
            expected = [
                job.id
                for job, said in newest_first
                if set(text.split()) <= set(said.split())
                and filters.get("task") in (None, job.task)
                and filters.get("tag") in (None, *job.tags)
            ]
            assert await found(queue, text, limit=7, **filters) == expected


async def test_jobs_that_arrive_or_go_between_two_pages_move_no_other(queue: Queue) -> None:
    ids = [(await queue.submit("words", {"text": "same"})).id for _ in range(10)]
    wanted = JobFilter(words=("same",))
    page, cursor = await queue.list(wanted, limit=4)
    await queue.submit("words", {"text": "same, but later"})
    await queue.purge(page[-1].id)
    rest, end = await queue.list(wanted, limit=50, cursor=cursor)
    assert end is None
    assert {job.id for job in page} | {job.id for job in rest} == set(ids)
    assert len(page) + len(rest) == len(ids)


async def test_an_owner_finds_its_own_jobs_only_and_who_asks_for_all_finds_all(queue: Queue) -> None:
    ours = await queue.submit("words", {"text": "shared"}, owner="acme")
    theirs = await queue.submit("words", {"text": "shared"}, owner="globex")
    nobodys = await queue.submit("words", {"text": "shared"})
    assert await found(queue, "shared", owner="acme") == [ours.id]
    assert set(await found(queue, "shared")) == {ours.id, theirs.id, nobodys.id}


@pytest.mark.parametrize("end", ["purge", "sweep"])
async def test_what_is_gone_leaves_no_word_behind(queue: Queue, client: ArqRedis, end: str) -> None:
    job = await queue.submit(
        "words", {"text": "here today"}, owner="acme", options=SubmitOptions(tags=["x"], ttl=0.001)
    )
    assert await client.zcard(keys.INDEX_WORDS) == 2
    if end == "purge":
        await queue.purge(job.id)
    else:
        [claimed], _ = await claim(client, queue="default", worker_id="w", slots=1, lease=10)
        await AttemptWriter(client, claimed).finish(outcome(), keep_arq_result=0)
        await client.delete(keys.record(job.id), keys.log(job.id))
        while not await store.sweep(client, queues=["default"]):
            pass  # the millisecond is not over yet
    assert await client.keys(keys.INDEX_WORDS + "*") == []


async def test_a_job_that_ended_is_still_found(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("words", {"text": "to be"})
    [claimed], _ = await claim(client, queue="default", worker_id="w", slots=1, lease=10)
    await AttemptWriter(client, claimed).finish(outcome(), keep_arq_result=0)
    assert await found(queue, "be", status="succeeded") == [job.id]


async def test_no_words_are_kept_where_search_is_off(client: ArqRedis) -> None:
    await Queue(client, words=0).submit("words", {"text": "to be"})
    assert await client.exists(keys.INDEX_WORDS) == 0


async def test_a_job_of_a_stock_client_is_found_once_a_worker_has_read_it(
    client: ArqRedis, queue: Queue, worker: Worker
) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    job = await stock.enqueue_job("add", a=40_711)
    assert job is not None
    await job.result(timeout=20, poll_delay=0.02)
    assert await found(queue, "40711") == [job.job_id]


async def test_a_filter_that_hardly_anything_matches_gives_short_pages_and_a_cursor(
    queue: Queue, client: ArqRedis
) -> None:
    """One request looks at a bounded number of jobs; what is left is behind the cursor."""
    rare = await queue.submit("words", {"text": "needle straw"}, owner="acme")
    async with client.pipeline(transaction=False) as pipe:
        for number in range(12_000):
            pipe.zadd(keys.index(owner="acme"), {f"stale{number}": 9_999_999_999_999})
        await pipe.execute()
    wanted = JobFilter(owner="acme", task="words")
    page, cursor = await queue.list(wanted)
    assert (page, cursor is None) == ([], False)
    page, cursor = await queue.list(wanted, cursor=cursor)
    assert ([job.id for job in page], cursor) == ([rare.id], None)
