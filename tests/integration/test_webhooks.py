"""The mailbag and the courier: nothing is lost or made twice, and nothing goes where it may not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobstream import keys
from jobstream.errors import ConfigurationError
from jobstream.job import WEBHOOKS_QUEUE, Job
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource
from jobstream.store import JobFilter
from jobstream.webhooks import deliveries, endpoints, signing
from jobstream.webhooks.deliveries import DELIVERY_TASK, Delivery
from jobstream_workers.courier import retry_after
from jobstream_workers.settings import WorkerSettings
from tests.receiver import Receiver, answer, receiving
from tests.working import Settings, event_of, working

FIELDS = {"url": "http://127.0.0.1:1/", "events": list(endpoints.EVENTS)}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def called(url: str, **more: Any) -> SubmitOptions:
    return SubmitOptions(callback_url=url, **more)


async def cancelled(queue: Queue, url: str | None = None, *, owner: str | None = None) -> Job:
    """A job that has ended, without a worker."""
    job = await queue.submit("words", {"text": "a"}, owner=owner, options=called(url) if url else None)
    return (await queue.cancel(job.id)).job


async def told(client: ArqRedis, job: Job) -> list[Delivery]:
    return await deliveries.deliveries_of(client, job.id)


async def delivered(client: ArqRedis, job: Job) -> Delivery:
    """The job's only delivery, when its own job has ended."""
    async with asyncio.timeout(20):
        found: list[Delivery] = []
        while not found or not await client.exists(keys.record(found[0].run)):
            await asyncio.sleep(0.01)
            found = await told(client, job)
    await event_of(client, found[0].run, "done")
    [delivery] = await told(client, job)
    return delivery


async def test_nothing_is_kept_of_an_end_that_nobody_wants_to_know(queue: Queue, client: ArqRedis) -> None:
    await endpoints.register(client, owner="acme", fields=FIELDS)
    await cancelled(queue)
    await cancelled(queue, owner="globex")
    assert not await client.exists(keys.MAILBAG)
    await cancelled(queue, owner="acme")
    assert await client.llen(keys.MAILBAG) == 1  # type: ignore[misc]


async def test_a_collector_that_dies_in_the_middle_loses_nothing_and_makes_none_twice(
    queue: Queue, client: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await endpoints.register(client, owner="acme", fields=FIELDS)
    jobs = [await cancelled(queue, "http://192.0.2.1/", owner="acme") for _ in range(3)]

    async def dies(*_: object, **__: object) -> None:
        raise RedisConnectionError

    for broken in ("submit_many", "submit_once"):
        with monkeypatch.context() as patch:
            patch.setattr(Queue, "submit_many", dies)
            patch.setattr(Queue, broken, dies)
            with pytest.raises(RedisConnectionError):
                await deliveries.collect(client, base="")
    half = (await told(client, jobs[0]))[0]
    await queue.submit(
        DELIVERY_TASK, {"delivery": half.id}, job_id=half.id, options=SubmitOptions(queue=WEBHOOKS_QUEUE, internal=True)
    )
    with monkeypatch.context() as patch:
        patch.setattr(client, "pipeline", pipeline_that_removes_nothing(client))
        with pytest.raises(RedisConnectionError):
            await deliveries.collect(client, base="")
    assert await client.llen(keys.MAILBAG) == 3  # type: ignore[misc]
    while await deliveries.collect(client, base=""):
        pass
    assert not await client.exists(keys.MAILBAG)
    assert [len(await told(client, job)) for job in jobs] == [3, 3, 3]
    made, _ = await queue.list(JobFilter(task=DELIVERY_TASK), limit=100)
    assert sorted(job.id for job in made) == sorted([each.id for job in jobs for each in await told(client, job)])


def pipeline_that_removes_nothing(client: ArqRedis) -> Any:
    make = client.pipeline

    def pipeline(*args: Any, **kwargs: Any) -> Any:
        pipe = make(*args, **kwargs)

        def lrem(*_: object) -> None:
            raise RedisConnectionError

        pipe.lrem = lrem  # type: ignore[method-assign, assignment]
        return pipe

    return pipeline


async def test_what_cannot_be_read_holds_up_nothing(queue: Queue, client: ArqRedis) -> None:
    await client.rpush(keys.MAILBAG, b"\xff", b"{}", b'{"id": 1}')  # type: ignore[misc]
    job = await cancelled(queue, "http://192.0.2.1/")
    await deliveries.collect(client, base="")
    assert len(await told(client, job)) == 1
    assert not await client.exists(keys.MAILBAG)


async def test_the_end_of_a_delivery_is_not_delivered(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, receiver: Receiver
) -> None:
    await endpoints.register(client, owner=None, fields=FIELDS | {"url": f"{receiver.url}/"})
    async with working(source, settings(webhook_allow="127.0.0.1")):
        job = await cancelled(queue)
        assert (await delivered(client, job)).state == "delivered"
    assert not await client.exists(keys.MAILBAG)
    assert len(receiver.received) == 1


async def test_a_name_that_leads_elsewhere_by_now_is_refused_when_it_is_called(
    source: RedisSource,
    settings: Settings,
    queue: Queue,
    client: ArqRedis,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = int(receiver.url.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def rebound(host: str, port: int, **hints: Any) -> Any:
        if host != "rebinds.example":
            return await resolve(host, port, **hints)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    async with working(source, settings()):
        job = await cancelled(queue, f"http://rebinds.example:{port}/")
        delivery = await delivered(client, job)
    assert delivery.state == "failed"
    assert delivery.attempts[0].error is not None
    assert "public address" in delivery.attempts[0].error
    assert len(delivery.attempts) == 1
    assert receiver.received == []


async def test_a_receiver_that_is_not_there_is_tried_again(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings(webhook_allow="127.0.0.1", webhook_retries="0,0.01")):
        job = await cancelled(queue, "http://127.0.0.1:1/")
        delivery = await delivered(client, job)
    assert delivery.state == "failed"
    assert len(delivery.attempts) == 3
    assert all(attempt.status is None and attempt.error for attempt in delivery.attempts)


async def test_a_receiver_that_says_nothing_is_given_up_on_in_time(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, receiver: Receiver
) -> None:
    async with working(source, settings(webhook_allow="127.0.0.1", webhook_retries="", webhook_timeout=0.2)):
        job = await cancelled(queue, f"{receiver.url}/held")
        delivery = await delivered(client, job)
    assert delivery.state == "failed"
    assert delivery.attempts[0].error == "no answer in 0.2 s"


async def test_an_answer_without_end_is_not_read_to_its_end(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, receiver: Receiver
) -> None:
    receiver.answers["/long"] = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 100_000]
    async with working(source, settings(webhook_allow="127.0.0.1")):
        job = await cancelled(queue, f"{receiver.url}/long")
        assert (await delivered(client, job)).state == "delivered"


async def test_the_schedule_is_the_specifications_and_jitter_only_prolongs_it(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, receiver: Receiver
) -> None:
    receiver.answers["/"] = [answer(500)]
    assert WorkerSettings().webhook_delays == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    async with working(source, settings(webhook_allow="127.0.0.1")):
        job = await cancelled(queue, f"{receiver.url}/")
        async with asyncio.timeout(20):
            while not (found := await told(client, job)) or found[0].next_at is None:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
        [delivery] = found
    assert delivery.next_at is not None
    assert 5 <= (delivery.next_at - delivery.attempts[0].at).total_seconds() <= 5.5
    assert delivery.state == "pending"


async def test_a_worker_without_slots_for_webhooks_leaves_them_to_others(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, receiver: Receiver
) -> None:
    async with working(source, settings(webhook_slots=0)):
        job = await cancelled(queue, f"{receiver.url}/")
        async with asyncio.timeout(20):
            while not await told(client, job):  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
    assert receiver.received == []
    async with working(source, settings(webhook_allow="127.0.0.1")):
        assert (await delivered(client, job)).state == "delivered"


async def test_many_receivers_that_do_not_answer_hold_up_no_other(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings, receiver: Receiver
) -> None:
    """Each has a lane of its own until it is known to be slow; together they would have every slot."""
    slow = [f"slow{number}" for number in range(12)]
    for owner in slow:
        await client.set(keys.SLOW_RECEIVER + f"{receiver.url.removeprefix('http://')} {owner}", 1, ex=3_660)
        for _ in range(2):
            await cancelled(queue, f"{receiver.url}/held", owner=owner)
    for _ in range(10):
        await cancelled(queue, f"{receiver.url}/well", owner="well")
    async with working(source, settings(webhook_allow="127.0.0.1", webhook_slots=10, webhook_timeout=120)):
        await receiver.first("/well", 10)
        assert 1 <= receiver.most_open["/held"] <= 2
        receiver.held["/held"].set()  # they answer again, and are as good as any
        await receiver.first("/held", 24)
    assert not [key async for key in client.scan_iter(keys.SLOW_RECEIVER + "*")]


async def test_after_a_minute_a_slow_receiver_is_tried_with_one_at_a_time(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings, receiver: Receiver
) -> None:
    await client.set(keys.SLOW_RECEIVER + f"{receiver.url.removeprefix('http://')} ", 1, ex=3_599)
    for _ in range(4):
        await cancelled(queue, f"{receiver.url}/held")
    await cancelled(queue, f"{receiver.url}/well", owner="well")
    async with working(source, settings(webhook_allow="127.0.0.1", webhook_slots=10, webhook_timeout=120)):
        await receiver.first("/held")
        await receiver.first("/well")
        assert receiver.most_open["/held"] == 1
        receiver.held["/held"].set()
        await receiver.first("/held", 4)


async def test_a_receiver_that_does_not_answer_is_slow_until_it_does(
    queue: Queue, client: ArqRedis, source: RedisSource, settings: Settings, receiver: Receiver
) -> None:
    changes = {
        "webhook_allow": "127.0.0.1",
        "webhook_timeout": 0.3,
        "webhook_retries": "0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1",
    }
    async with working(source, settings(**changes)):
        job = await cancelled(queue, f"{receiver.url}/held")
        mark = keys.SLOW_RECEIVER + f"{receiver.url.removeprefix('http://')} "
        async with asyncio.timeout(20):
            while not await client.exists(mark):  # noqa: ASYNC110 (no event says so)
                await asyncio.sleep(0.01)
        assert 3_600 < await client.ttl(mark) <= 3_660
        receiver.held["/held"].set()
        assert (await delivered(client, job)).state == "delivered"
    assert not await client.exists(mark)


async def test_a_tenant_has_so_many_endpoints(client: ArqRedis) -> None:
    for _ in range(endpoints.ENDPOINTS_MOST):
        await endpoints.register(client, owner="acme", fields=FIELDS)
    with pytest.raises(Exception, match="50 endpoints already"):
        await endpoints.register(client, owner="acme", fields=FIELDS)
    await endpoints.register(client, owner="globex", fields=FIELDS)


async def test_the_services_secret_is_made_once(client: ArqRedis) -> None:
    made = {await signing.callback_secrets(client, (), None) for _ in range(3)}
    assert len(made) == 1
    given = (signing.new_secret(), signing.new_secret())
    assert await signing.callback_secrets(client, given, None) == given
    assert len({*await signing.callback_secrets(client, given, "acme"), *given}) == 4


@pytest.mark.parametrize("owner", ["acme", None])
async def test_a_tenants_callback_secret_is_rotated_alone(client: ArqRedis, owner: str | None) -> None:
    given = (signing.new_secret(),)
    rest = [other for other in ("globex", None, "acme") if other != owner]
    others = [await signing.callback_secrets(client, given, other) for other in rest]
    (first,) = await signing.callback_secrets(client, given, owner)
    await signing.rotate_callback_secret(client, owner, overlap=3600)
    second, old = await signing.callback_secrets(client, given, owner)
    assert old == first != second
    await signing.rotate_callback_secret(client, owner, overlap=3600)
    third, old = await signing.callback_secrets(client, given, owner)
    assert (old, third in (first, second)) == (second, False)
    await signing.rotate_callback_secret(client, owner, overlap=0)
    (fourth,) = await signing.callback_secrets(client, given, owner)
    assert fourth not in (first, second, third)
    again = [await signing.callback_secrets(client, given, other) for other in rest]
    assert again == others


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!!", "whsec_" + "A" * 200])
def test_what_is_no_secret_is_no_setting(secret: str) -> None:
    with pytest.raises(ConfigurationError):
        signing.secret_bytes(secret)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
        ("", 0),
        ("soon", 0),
        ("-1", 0),
        ("²", 0),
        ("9" * 400, 999_999_999),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str, seconds: float) -> None:
    assert retry_after(text, now=lambda: 10.0) == seconds
