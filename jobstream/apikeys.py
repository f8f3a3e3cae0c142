"""API keys: `jsk_<id>_<secret>`, of which Redis keeps the id and a digest of the whole."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream import keys
from jobstream.caller import TENANT, Caller, Scope
from jobstream.errors import InvalidParameter
from jobstream.job import Record, from_ms, pairs
from jobstream.redis import time_ms
from jobstream.scripts import Script

PREFIX = "jsk_"
"""What every key begins with, so that people and scanners know one when they see it."""

ID_BYTES = 8
SECRET_BYTES = 32

USE_NOTED_SECONDS = 60
"""`used_at` is right within this time: a key that is used all the time is written once in it."""

EXPIRED_KEPT_SECONDS = 30 * 86_400
"""How long an expired key is still listed."""

NAME_MAX = 100

_KEY = re.compile(r"jsk_(?P<id>[0-9a-f]{16})_[\w-]{20,100}\Z", re.ASCII)

_use = Script("use_key")
_rotate = Script("rotate_key")


class _Digests(NamedTuple):
    """SHA-256 of the whole key.

    Without salt and work factor: they make guessing slow where secrets are weak. These have 256 random bits.
    """

    current: bytes
    old: bytes
    old_until: int


@dataclass(frozen=True)
class ApiKey:
    """A key as Redis knows it: enough to check one, not to make one."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    name: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    digests: _Digests
    now: datetime
    """Redis's time when it was read."""

    @property
    def prefix(self) -> str:
        """The visible part."""
        return f"{PREFIX}{self.id}"

    @property
    def expired(self) -> bool:
        """True when it had expired when it was read."""
        return self.expires_at is not None and self.expires_at <= self.now

    @property
    def old_until(self) -> datetime | None:
        """Until when the secret before the last rotation is valid; None when there is none."""
        until = from_ms(self.digests.old_until)
        return until if until > self.now else None

    @property
    def caller(self) -> Caller:
        """Who comes with this key."""
        return Caller(tenant=self.tenant, scopes=self.scopes, key_id=self.id)

    def matches(self, text: str) -> bool:
        """True for the key itself, or the one before it while that is valid. Takes the same time for all."""
        digest = _digest(text)
        current = hmac.compare_digest(digest, self.digests.current)
        old = hmac.compare_digest(digest, self.digests.old)
        return current or (old and self.old_until is not None)


def id_of(text: str) -> str | None:
    """The id in what somebody sent as a key; None for what cannot be one."""
    match = _KEY.match(text)
    return match["id"] if match else None


async def create_key(
    client: Redis, *, tenant: str, scopes: Iterable[Scope], name: str = "", lifetime: float | None = None
) -> tuple[ApiKey, str]:
    """A new key, and its text, which nobody can read again. `lifetime`: seconds until it expires; None: it does not.

    Raises InvalidParameter for a tenant or name that cannot be one.
    """
    scopes = frozenset(scopes)
    if not TENANT.match(tenant):
        raise InvalidParameter("A tenant's name is 1 to 128 visible ASCII characters, without spaces")
    if not scopes:
        raise InvalidParameter("A key without any scope opens nothing")
    if len(name) > NAME_MAX or not name.isprintable():
        raise InvalidParameter(f"A key's name is up to {NAME_MAX} printable characters")
    key_id = secrets.token_hex(ID_BYTES)
    text = _text(key_id)
    now = await time_ms(client)
    fields: dict[str | bytes, bytes | str | float | int] = {
        "tenant": tenant,
        "scopes": " ".join(sorted(scopes)),
        "name": name,
        "created_at": now,
        "digest": _digest(text),
    }
    if lifetime is not None:
        fields["expires_at"] = now + round(lifetime * 1000)
    async with client.pipeline(transaction=True) as pipe:
        pipe.hset(keys.api_key(key_id), mapping=fields)
        if lifetime is not None:
            pipe.pexpire(keys.api_key(key_id), round((lifetime + EXPIRED_KEPT_SECONDS) * 1000))
        pipe.zadd(keys.API_KEYS, {key_id: now})
        await pipe.execute()
    made = await read_key(client, key_id)
    assert made is not None
    return made, text


async def read_key(client: Redis, key_id: str) -> ApiKey | None:
    """The key, expired or not; None when there is none, or it was revoked."""
    [found] = await _read(client, [key_id])
    return found


async def list_keys(client: Redis) -> list[ApiKey]:
    """All keys that were not revoked, the oldest first."""
    ids = [key_id.decode() for key_id in await client.zrange(keys.API_KEYS, 0, -1)]
    found = dict(zip(ids, await _read(client, ids), strict=True))
    if gone := [key_id for key_id, key in found.items() if key is None]:
        await client.zrem(keys.API_KEYS, *gone)
    return [key for key in found.values() if key is not None]


async def revoke_key(client: Redis, key_id: str) -> bool:
    """Forget a key; False when there is none of that id."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.delete(keys.api_key(key_id))
        pipe.zrem(keys.API_KEYS, key_id)
        deleted, _ = await pipe.execute()
    return bool(deleted)


async def rotate_key(client: Redis, key_id: str, *, overlap: float) -> tuple[ApiKey, str] | None:
    """Another secret for the same key; the one before stays valid for `overlap` seconds. None: no such key.

    A secret from before that, still valid from the last rotation, is not any more: there are two at most.
    """
    text = _text(key_id)
    stored = pairs(await _rotate(client, args=[key_id, _digest(text), round(overlap * 1000)]))
    if not stored:
        return None
    return _key(key_id, stored, await time_ms(client)), text


async def note_use(client: Redis, key: ApiKey) -> ApiKey:
    """The key with `used_at`, which is written if what it says is older than a minute."""
    if key.used_at is not None and (key.now - key.used_at).total_seconds() < USE_NOTED_SECONDS:
        return key
    await _use(client, args=[key.id])
    return replace(key, used_at=key.now)


def _text(key_id: str) -> str:
    return f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def _read(client: Redis, ids: list[str]) -> list[ApiKey | None]:
    async with client.pipeline(transaction=False) as pipe:
        pipe.time()
        for key_id in ids:
            pipe.hgetall(keys.api_key(key_id))
        (seconds, microseconds), *records = await pipe.execute()
    now = seconds * 1000 + microseconds // 1000
    return [
        _key(key_id, record, now) if b"digest" in record else None for key_id, record in zip(ids, records, strict=True)
    ]


def _key(key_id: str, record: Record, now: int) -> ApiKey:
    expires, used = record.get(b"expires_at"), record.get(b"used_at")
    known = {scope.value for scope in Scope}
    return ApiKey(
        id=key_id,
        tenant=record[b"tenant"].decode(),
        scopes=frozenset(Scope(word) for word in record[b"scopes"].decode().split() if word in known),
        name=record[b"name"].decode(),
        created_at=from_ms(record[b"created_at"]),
        expires_at=from_ms(expires) if expires else None,
        used_at=from_ms(used) if used else None,
        digests=_Digests(
            current=record[b"digest"], old=record.get(b"old_digest", b""), old_until=int(record.get(b"old_until", 0))
        ),
        now=from_ms(now),
    )
