"""Endpoints: receivers that a tenant has registered for the ends of its jobs, each with a secret of its own."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import InvalidParameter, WebhookNotFound
from jobstream.job import Record, from_ms
from jobstream.redis import time_ms
from jobstream.scripts import Script
from jobstream.store import is_visible
from jobstream.webhooks.signing import new_secret

EVENTS = ("job.succeeded", "job.failed", "job.cancelled")
TEST_EVENT = "webhook.test"

ENDPOINTS_MOST = 50
"""Endpoints of one tenant: each end of a job is compared with all of them."""

_register = Script("register_webhook")


@dataclass(frozen=True)
class Endpoint:
    """A registered receiver."""

    id: str
    owner: str | None
    url: str
    events: tuple[str, ...]
    task: str | None
    tag: str | None
    description: str
    created_at: datetime
    disabled: str | None
    """Why nothing is sent to it; None: it is in use."""
    secret: str
    old_secret: str | None
    old_until: datetime | None

    def wants(self, event: str, *, task: str, tags: Sequence[str]) -> bool:
        """Whether such an end of a job is to be told."""
        return (
            self.disabled is None
            and event in self.events
            and self.task in (None, task)
            and (self.tag is None or self.tag in tags)
        )

    def secrets(self, now: datetime) -> tuple[str, ...]:
        """What signs: two, while the secret is rotated."""
        if self.old_secret is not None and self.old_until is not None and now < self.old_until:
            return self.secret, self.old_secret
        return (self.secret,)


async def register(client: Redis, *, owner: str | None, fields: dict[str, Any]) -> Endpoint:
    """A new endpoint, with its secret. `fields`: url, events, task, tag, description. Raises InvalidParameter."""
    webhook_id = "wh_" + secrets.token_hex(12)
    stored = _stored(fields) | {"secret": new_secret()}
    if owner is not None:
        stored["owner"] = owner
    flat = [part for pair in stored.items() for part in pair]
    if not await _register(client, args=[webhook_id, owner or "", ENDPOINTS_MOST, *flat]):
        raise InvalidParameter(f"There are {ENDPOINTS_MOST} endpoints already, which is the most")
    return await get_endpoint(client, webhook_id, owner=owner)


async def find_endpoints(client: Redis, *, owner: str | None) -> list[Endpoint]:
    """The tenant's endpoints, the oldest first; None: those of all."""
    index = keys.WEBHOOKS if owner is None else keys.webhooks_of(owner)
    return await read_endpoints(client, [webhook_id.decode() for webhook_id in await client.zrange(index, 0, -1)])


async def endpoints_in_use(client: Redis, owner: str | None) -> list[Endpoint]:
    """Those of exactly this tenant (None: of nobody) that are not disabled."""
    members = await cast("Awaitable[set[bytes]]", client.smembers(keys.webhooks_in_use(owner)))
    return await read_endpoints(client, sorted(member.decode() for member in members))


async def read_endpoints(client: Redis, ids: Sequence[str]) -> list[Endpoint]:
    """The endpoints of these ids, without those that are gone."""
    async with client.pipeline(transaction=False) as pipe:
        for webhook_id in ids:
            pipe.hgetall(keys.webhook(webhook_id))
        records = await pipe.execute()
    return [
        _endpoint(webhook_id, record) for webhook_id, record in zip(ids, records, strict=True) if b"secret" in record
    ]


async def get_endpoint(client: Redis, webhook_id: str, *, owner: str | None) -> Endpoint:
    """The endpoint. Raises WebhookNotFound, also for another tenant's."""
    record = await cast("Awaitable[Record]", client.hgetall(keys.webhook(webhook_id)))
    if b"secret" not in record or not is_visible(record.get(b"owner"), owner):
        raise WebhookNotFound(f"There is no webhook {webhook_id[:64]!r}")
    return _endpoint(webhook_id, record)


async def change(client: Redis, endpoint: Endpoint, fields: dict[str, Any]) -> None:
    """Change some of url, events, task, tag, description, disabled (why, or None: use it again)."""
    stored = _stored(fields)
    gone = [name for name, value in fields.items() if value is None]
    async with client.pipeline(transaction=True) as pipe:
        if stored:
            pipe.hset(keys.webhook(endpoint.id), mapping=cast("dict[str | bytes, bytes | float | int | str]", stored))
        if gone:
            pipe.hdel(keys.webhook(endpoint.id), *gone)
        if "disabled" in fields:
            in_use = keys.webhooks_in_use(endpoint.owner)
            if fields["disabled"] is None:
                pipe.sadd(in_use, endpoint.id)
            else:
                pipe.srem(in_use, endpoint.id)
        await pipe.execute()


async def rotate(client: Redis, endpoint: Endpoint, *, overlap: float) -> str:
    """Another secret; for `overlap` seconds messages are signed by both. Returns the new one."""
    secret = new_secret()
    until = await time_ms(client) + round(overlap * 1000)
    await cast(
        "Awaitable[int]",
        client.hset(
            keys.webhook(endpoint.id),
            mapping={"secret": secret, "old_secret": endpoint.secret, "old_until": until},
        ),
    )
    return secret


async def delete(client: Redis, endpoint: Endpoint) -> None:
    """Forget it. What was still to be delivered to it is not."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.delete(keys.webhook(endpoint.id), keys.deliveries_to(endpoint.id))
        pipe.zrem(keys.WEBHOOKS, endpoint.id)
        pipe.srem(keys.webhooks_in_use(endpoint.owner), endpoint.id)
        if endpoint.owner is not None:
            pipe.zrem(keys.webhooks_of(endpoint.owner), endpoint.id)
        await pipe.execute()


def _stored(fields: dict[str, Any]) -> dict[str, str]:
    return {
        name: " ".join(value) if isinstance(value, list | tuple) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def _endpoint(webhook_id: str, record: Record) -> Endpoint:
    text = {name.decode(): value.decode() for name, value in record.items()}
    until = text.get("old_until")
    return Endpoint(
        id=webhook_id,
        owner=text.get("owner"),
        url=text["url"],
        events=tuple(text.get("events", "").split()),
        task=text.get("task"),
        tag=text.get("tag"),
        description=text.get("description", ""),
        created_at=from_ms(int(text.get("created_at", 0))),
        disabled=text.get("disabled"),
        secret=text["secret"],
        old_secret=text.get("old_secret"),
        old_until=from_ms(int(until)) if until else None,
    )
