"""A batch of jobs: stored as if one by one, but all or none, and each queue is woken once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from arq.connections import ArqRedis
from redis.exceptions import OutOfMemoryError

from jobstream import keys
from jobstream.errors import InvalidParameter, JobConflict, PayloadTooLarge, RedisUnavailable
from jobstream.job import JobStatus
from jobstream.queue import BATCH_BYTES, BATCH_JOBS, Queue, Submission, SubmitOptions
from jobstream.redis import RedisSource
from jobstream.serialize import deserialize
from tests.working import Settings, ended, working

MIXED = [
    Submission("words", {"text": "a"}, job_id="a"),
    Submission("words", {"text": "b"}, SubmitOptions(queue="low", tags=["x", "y", "x"], timeout=5), job_id="b"),
    Submission("files", {}, SubmitOptions(delay=60, priority=7), default_queue="low", default_ttl=9.5, job_id="c"),
    Submission("files", {"n": 1}, SubmitOptions(priority=3, ttl=7), max_attempts=4, owner="ada", job_id="d"),
    Submission("words", {}, SubmitOptions(run_at=datetime(2020, 1, 1, tzinfo=UTC)), owner="ada", job_id="e"),
]


async def stored(client: ArqRedis) -> dict[str, object]:
    """All that Redis holds, without times."""
    found: dict[str, object] = {}
    async for key in client.scan_iter("*"):
        name, kind = key.decode(), (await client.type(key)).decode()
        value: object
        if kind == "hash":
            record = await client.hgetall(key)  # type: ignore[misc]
            value = {field: data for field, data in record.items() if field not in (b"created_at", b"run_at")}
        elif kind == "zset":
            value = set(await client.zrange(key, 0, -1))
        elif kind == "list":
            entries = await client.lrange(key, 0, -1)  # type: ignore[misc]
            value = [(*entry.split(b" ", 3)[:2], entry.split(b" ", 3)[3]) for entry in entries]
        elif kind == "set":
            value = await client.smembers(key)  # type: ignore[misc]
        else:
            value = deserialize(await client.get(key)) | {"et": 0}
        found[name] = (kind, value, await client.pttl(key) > 0)
    return found


async def test_a_batch_leaves_what_single_submits_leave(queue: Queue, client: ArqRedis) -> None:
    for one in MIXED:
        await queue.submit(
            one.task,
            one.data,
            options=one.options,
            default_queue=one.default_queue,
            default_ttl=one.default_ttl,
            max_attempts=one.max_attempts,
            job_id=one.job_id,
            owner=one.owner,
        )
    singly = await stored(client)
    await client.flushall()
    assert await queue.submit_many(MIXED) == ["a", "b", "c", "d", "e"]
    assert await stored(client) == singly
    scheduled, plain = await queue.get("c"), await queue.get("e")
    assert (scheduled.status, plain.status, plain.run_at) == (JobStatus.SCHEDULED, JobStatus.QUEUED, None)
    assert scheduled.run_at is not None
    assert (scheduled.run_at - scheduled.created_at).total_seconds() == 60
    urgent = await client.zscore(keys.SEATS + "default ada", "d")
    assert urgent is not None
    assert urgent == pytest.approx(plain.created_at.timestamp() * 1000 - 3e9)
    assert await client.zrange(keys.ROOM + "default ada", 0, -1) == [b"e"]


async def test_every_job_has_its_event_and_each_job_one_wake_up(queue: Queue, client: ArqRedis) -> None:
    await client.zadd(keys.idle("default"), {f"default{number}": number - 10 for number in range(10)})
    await client.zadd(keys.idle("low"), {"low0": -1})
    async with client.pubsub() as pubsub:
        await pubsub.psubscribe(keys.control("*"), keys.events("*"), "end")
        for _ in range(3):
            await pubsub.get_message(timeout=5)
        await queue.submit_many(MIXED)
        await client.publish("end", "")
        heard: list[str] = []
        while (message := await pubsub.get_message(timeout=5)) is not None and message["channel"] != b"end":
            heard.append(message["channel"].decode())
    wakes = [keys.control(worker) for worker in ("default0", "default1", "default2", "low0")]
    assert sorted(heard) == sorted(wakes + [keys.events(id_) for id_ in "abcde"])


async def test_a_batch_runs(source: RedisSource, settings: Settings, queue: Queue) -> None:
    async with working(source, settings(polls=False)):
        ids = await queue.submit_many([Submission("add", {"a": number}) for number in range(300)])
        jobs = [await ended(queue, await queue.get(job_id)) for job_id in ids]
    assert [job.result for job in jobs] == [{"total": number + 1} for number in range(300)]


async def test_a_batch_of_thousands_is_whole_and_in_order(queue: Queue, client: ArqRedis) -> None:
    ids = await queue.submit_many([Submission("words", {}, SubmitOptions(tags=["x"])) for _ in range(2_500)])
    assert len(set(ids)) == 2_500
    for key in (keys.queue("default"), keys.INDEX, keys.index(tag="x"), keys.index(status="queued"), keys.EXPIRY):
        assert await client.zcard(key) == 2_500


async def test_nothing_of_a_batch_is_stored_when_one_of_it_makes_no_sense(queue: Queue, client: ArqRedis) -> None:
    good = Submission("words", {})
    for bad in (Submission("words", {}, SubmitOptions(delay=-1)), Submission("words", {}, owner="two words")):
        with pytest.raises(InvalidParameter, match=r"^Job 1 of the batch: "):
            await queue.submit_many([good, bad])
    with pytest.raises(InvalidParameter, match="same id"):
        await queue.submit_many([Submission("words", {}, job_id="a")] * 2)
    with pytest.raises(PayloadTooLarge, match="10,000 jobs"):
        await queue.submit_many([good] * (BATCH_JOBS + 1))
    with pytest.raises(PayloadTooLarge, match="32 MB"):
        await queue.submit_many([Submission("words", {"text": "x" * (BATCH_BYTES // 2)})] * 2)
    assert await queue.submit_many([]) == []
    assert await client.keys("*") == []


async def test_a_batch_that_is_sent_again_is_stored_once(queue: Queue, client: ArqRedis) -> None:
    await queue.submit_many(MIXED)
    before = await stored(client)
    assert await queue.submit_many(MIXED) == ["a", "b", "c", "d", "e"]
    with pytest.raises(JobConflict, match=r"job [a-e] already"):
        await queue.submit_many([Submission("words", {}, job_id="new"), *MIXED])
    assert await stored(client) == before


async def test_a_batch_that_comes_too_late_is_not_stored(
    queue: Queue, client: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.submit("words", {})
    before = await stored(client)
    monkeypatch.setattr("jobstream.queue.PATIENCE_SECONDS", -1)
    with pytest.raises(RedisUnavailable):
        await queue.submit_many(MIXED)
    assert await stored(client) == before


async def test_a_full_redis_stores_nothing_of_a_batch(real_client: ArqRedis) -> None:
    """And one that becomes full in the middle of a batch stores it all: the script has begun to write."""
    queue, many = Queue(real_client), [Submission("words", {"text": "x" * 500}) for _ in range(2_000)]
    await queue.submit("words", {})
    before = await stored(real_client)
    try:
        await real_client.config_set("maxmemory", "1mb")
        with pytest.raises(OutOfMemoryError):
            await queue.submit_many(many)
        assert await stored(real_client) == before
        used = (await real_client.info("memory"))["used_memory"]
        await real_client.config_set("maxmemory", used + (3 << 20))
        for _ in range(3):
            try:
                await queue.submit_many(many)
            except OutOfMemoryError:
                break
        assert (await real_client.zcard(keys.queue("default")) - 1) % len(many) == 0
    finally:
        await real_client.config_set("maxmemory", "0")
