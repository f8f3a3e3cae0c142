"""Deliveries: the mailbag becomes a job per message and receiver, and each has a log of its attempts.

The script that ends a job puts its record into the mailbag, if anybody is to be told: with the end, or not at all. Any
worker then makes the deliveries, under ids that are always the same for the same end and receiver: one that dies in the
middle loses nothing, and whoever does it again makes none twice.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import DeliveryNotFound, JobConflict, JobGone, JobNotFound
from jobstream.job import FINAL, WEBHOOKS_QUEUE, Job, JobStatus, Record, from_ms, new_job_id, wire_time
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import time_ms
from jobstream.store import is_visible
from jobstream.traces import Carrier
from jobstream.webhooks import endpoints
from jobstream.webhooks.endpoints import TEST_EVENT, Endpoint
from jobstream.webhooks.message import (
    body_of,
    callback_url_of,
    delivery_id_of,
    ended_job,
    message_id_of,
    result_was_left_out,
    trace_of,
)

logger = logging.getLogger("jobstream.webhooks")

DELIVERY_TASK = "webhook-delivery"
"""The task that every worker has, although nobody can submit it."""

KEPT_SECONDS = 14 * 86_400
ATTEMPTS_KEPT = 100
LISTED_MOST = 1_000
"""Deliveries of one endpoint that are listed."""

COLLECTED_AT_ONCE = 50
COLLECTING_SECONDS = 10.0

State = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One try to deliver a message. `seconds`: how long it took."""

    at: datetime
    status: int | None
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Delivery:
    """A message to one receiver, and what became of it."""

    id: str
    webhook: str | None
    """The endpoint's id; None: it goes to the job's `callback_url`."""
    url: str
    owner: str | None
    job: str | None
    """Whose end it tells; None for a test."""
    event: str
    message_id: str
    body: bytes
    created_at: datetime
    state: State
    attempts: tuple[Attempt, ...]
    next_at: datetime | None
    run: str
    """The job that delivers it now. A manual redelivery is another job."""
    tries: int
    """Attempts that this job has made."""

    @property
    def receiver(self) -> str:
        """Deliveries to the same receiver wait for each other."""
        if self.webhook is not None:
            return self.webhook
        return f"{urlsplit(self.url).netloc.lower()} {self.owner or ''}"


@dataclass(frozen=True)
class _New:
    delivery_id: str
    fields: dict[str, str | bytes | int]
    webhook: str | None
    job: str | None
    created_ms: int
    trace: Carrier | None


async def collect(client: Redis, *, base: str) -> bool:
    """Make deliveries of what is in the mailbag. True when there may be more.

    `base`: where the API is reached, for the links of jobs. One process does this at a time.
    """
    if not await client.exists(keys.MAILBAG):
        return False
    token = secrets.token_hex(8)
    if not await client.set(keys.COLLECTING, token, nx=True, px=round(COLLECTING_SECONDS * 1000)):
        return False
    try:
        entries = await cast("Awaitable[list[bytes]]", client.lrange(keys.MAILBAG, 0, COLLECTED_AT_ONCE - 1))
        await _store(client, await _deliveries_of(client, entries, base=base))
        async with client.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.lrem(keys.MAILBAG, 1, cast("str", entry))
            await pipe.execute()
    finally:
        if await client.get(keys.COLLECTING) == token.encode():
            await client.delete(keys.COLLECTING)
    return bool(await client.exists(keys.MAILBAG))


async def send_test(client: Redis, endpoint: Endpoint) -> Delivery:
    """A message by which the endpoint's owner sees whether it arrives."""
    job_id, now = new_job_id(), from_ms(await time_ms(client))
    message_id = f"msg_test_{job_id}"
    body = body_of(TEST_EVENT, wire_time(now), {"webhook": endpoint.id, "url": endpoint.url})
    new = _new(
        message_id, TEST_EVENT, body, webhook=endpoint.id, url=endpoint.url, owner=endpoint.owner, job=None, at=now
    )
    await _store(client, [new])
    return await get_delivery(client, new.delivery_id, owner=None)


async def redeliver(client: Redis, delivery: Delivery) -> Delivery:
    """Deliver it once more, now, and then as often as a new one. What was still to be tried is not."""
    run = new_job_id()
    await cast(
        "Awaitable[int]",
        client.hset(keys.delivery(delivery.id), mapping={"run": run, "tries": 0, "state": "pending", "next_at": ""}),
    )
    queue = Queue(client, words=0)
    await queue.submit_once(DELIVERY_TASK, {"delivery": delivery.id}, **_options(delivery.job), job_id=run)
    with contextlib.suppress(JobNotFound, JobGone, JobConflict):
        await queue.cancel(delivery.run)
    await _touch(client, delivery.id)
    return await get_delivery(client, delivery.id, owner=None)


async def note_attempt(
    client: Redis, delivery: Delivery, attempt: Attempt, *, state: State, next_at: datetime | None
) -> None:
    """Write an attempt into the log, and what follows from it."""
    stored = {
        "at": _ms(attempt.at),
        "status": attempt.status,
        "seconds": round(attempt.seconds, 3),
        "error": attempt.error,
    }
    attempts = keys.delivery_attempts(delivery.id)
    async with client.pipeline(transaction=True) as pipe:
        pipe.rpush(attempts, msgspec.json.encode(stored))
        pipe.ltrim(attempts, -ATTEMPTS_KEPT, -1)
        pipe.hincrby(keys.delivery(delivery.id), "tries", 1)
        pipe.hset(
            keys.delivery(delivery.id),
            mapping={"state": state, "next_at": "" if next_at is None else _ms(next_at)},
        )
        await pipe.execute()
    await _touch(client, delivery.id)


async def get_delivery(client: Redis, delivery_id: str, *, owner: str | None) -> Delivery:
    """The delivery. Raises DeliveryNotFound, also for one of another tenant's."""
    found = await _read(client, [delivery_id])
    if not found or not is_visible(None if found[0].owner is None else found[0].owner.encode(), owner):
        raise DeliveryNotFound(f"There is no delivery {delivery_id[:64]!r}")
    return found[0]


async def deliveries_to(client: Redis, webhook_id: str, *, limit: int) -> list[Delivery]:
    """An endpoint's deliveries, the newest first."""
    ids = await client.zrevrange(keys.deliveries_to(webhook_id), 0, limit - 1)
    return await _read(client, [delivery_id.decode() for delivery_id in ids])


async def deliveries_of(client: Redis, job_id: str) -> list[Delivery]:
    """What was told of a job, the newest first."""
    ids = await client.zrevrange(keys.deliveries_of(job_id), 0, LISTED_MOST - 1)
    return await _read(client, [delivery_id.decode() for delivery_id in ids])


async def _deliveries_of(client: Redis, entries: Sequence[bytes], *, base: str) -> list[_New]:
    made: list[_New] = []
    in_use: dict[str | None, list[Endpoint]] = {}
    for entry in entries:
        try:
            job = ended_job(entry, base=base)
        except ValueError:
            logger.exception("an entry of the mailbag cannot be read, and is dropped")
            continue
        if job.owner not in in_use:
            in_use[job.owner] = await endpoints.endpoints_in_use(client, job.owner)
        event = f"job.{job.status}"
        wanting = [each for each in in_use[job.owner] if each.wants(event, task=job.task, tags=job.tags)]
        callback_url = callback_url_of(entry)
        if not wanting and callback_url is None:
            continue
        at = job.finished_at or job.created_at
        omitted = ("result",) if result_was_left_out(entry) else ()
        body = body_of(event, wire_time(at), job.model_dump(mode="json"), omitted=omitted)
        message_id = message_id_of(job)
        receivers: list[tuple[str | None, str]] = [(each.id, each.url) for each in wanting]
        if callback_url is not None:
            receivers.append((None, callback_url))
        trace = trace_of(entry)
        made += [
            _new(message_id, event, body, webhook=webhook, url=url, owner=job.owner, job=job, at=at, trace=trace)
            for webhook, url in receivers
        ]
    return made


def _new(
    message_id: str,
    event: str,
    body: bytes,
    *,
    webhook: str | None,
    url: str,
    owner: str | None,
    job: Job | None,
    at: datetime,
    trace: Carrier | None = None,
) -> _New:
    created_ms = _ms(at)
    delivery_id = delivery_id_of(message_id, webhook or "callback", now_ms=created_ms)
    fields: dict[str, str | bytes | int] = {
        "url": url,
        "event": event,
        "message_id": message_id,
        "body": body,
        "created_at": created_ms,
    }
    known = {"webhook": webhook, "owner": owner, "job": job.id if job else None}
    fields |= {name: value for name, value in known.items() if value is not None}
    return _New(delivery_id, fields, webhook, job.id if job else None, created_ms, trace)


async def _store(client: Redis, made: Sequence[_New]) -> None:
    """The records first, then the jobs: a job without a record would have nothing to say."""
    if not made:
        return
    async with client.pipeline(transaction=True) as pipe:
        for new in made:
            key = keys.delivery(new.delivery_id)
            pipe.hset(key, mapping=cast("dict[str | bytes, bytes | float | int | str]", new.fields))
            pipe.hsetnx(key, "run", new.delivery_id)
            pipe.expire(key, KEPT_SECONDS)
            for index in filter(
                None,
                (
                    keys.deliveries_to(new.webhook) if new.webhook else None,
                    keys.deliveries_of(new.job) if new.job else None,
                ),
            ):
                pipe.zadd(index, {new.delivery_id: new.created_ms})
                pipe.zremrangebyrank(index, 0, -LISTED_MOST - 1)
                pipe.expire(index, KEPT_SECONDS)
        await pipe.execute()
    queue = Queue(client, words=0)
    jobs = [
        Submission(
            DELIVERY_TASK,
            {"delivery": new.delivery_id},
            **_options(new.job),
            job_id=new.delivery_id,
            trace=new.trace,
        )
        for new in made
    ]
    try:
        await queue.submit_many(jobs)
    except JobConflict:  # some of them were made before, by somebody who died in the middle
        for job in jobs:
            await queue.submit_once(
                job.task,
                job.data,
                options=job.options,
                default_ttl=job.default_ttl,
                max_attempts=job.max_attempts,
                job_id=job.job_id,
            )


def _options(job_id: str | None) -> dict[str, Any]:
    tags = ("webhook",) if job_id is None else ("webhook", f"of:{job_id}"[:64])
    return {
        "options": SubmitOptions(queue=WEBHOOKS_QUEUE, tags=tags, internal=True),
        "default_ttl": float(KEPT_SECONDS),
    }


async def _touch(client: Redis, delivery_id: str) -> None:
    async with client.pipeline(transaction=False) as pipe:
        pipe.expire(keys.delivery(delivery_id), KEPT_SECONDS)
        pipe.expire(keys.delivery_attempts(delivery_id), KEPT_SECONDS)
        await pipe.execute()


async def _read(client: Redis, ids: Sequence[str]) -> list[Delivery]:
    async with client.pipeline(transaction=False) as pipe:
        for delivery_id in ids:
            pipe.hgetall(keys.delivery(delivery_id))
            pipe.lrange(keys.delivery_attempts(delivery_id), 0, -1)
        answers = await pipe.execute()
    found = [
        (delivery_id, record, attempts)
        for delivery_id, record, attempts in zip(ids, answers[::2], answers[1::2], strict=True)
        if b"run" in record and b"body" in record
    ]
    async with client.pipeline(transaction=False) as pipe:
        for _, record, _ in found:
            pipe.hget(keys.record(record[b"run"].decode()), "status")
        statuses = await pipe.execute()
    return [
        _delivery(delivery_id, record, attempts, status)
        for (delivery_id, record, attempts), status in zip(found, statuses, strict=True)
    ]


def _delivery(delivery_id: str, record: Record, attempts: Sequence[bytes], status: bytes | None) -> Delivery:
    text = {name.decode(): value.decode() for name, value in record.items() if name != b"body"}
    state = cast("State", text.get("state", "pending"))
    if state == "pending" and status is not None and JobStatus(status.decode()) in FINAL:
        state = "failed"  # its job was cancelled, or took its workers down
    next_at = text.get("next_at")
    return Delivery(
        id=delivery_id,
        webhook=text.get("webhook"),
        url=text["url"],
        owner=text.get("owner"),
        job=text.get("job"),
        event=text["event"],
        message_id=text["message_id"],
        body=record[b"body"],
        created_at=from_ms(int(text["created_at"])),
        state=state,
        attempts=tuple(map(_attempt, attempts)),
        next_at=from_ms(int(next_at)) if next_at and state == "pending" else None,
        run=text["run"],
        tries=int(text.get("tries", 0)),
    )


def _attempt(stored: bytes) -> Attempt:
    members: Mapping[str, Any] = msgspec.json.decode(stored)
    return Attempt(
        at=from_ms(members["at"]), status=members["status"], seconds=members["seconds"], error=members["error"]
    )


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
