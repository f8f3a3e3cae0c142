"""Standard Webhooks 1.0 (github.com/standard-webhooks/standard-webhooks): secrets, signatures, the three headers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Iterable, Sequence
from typing import cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import ConfigurationError

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64."""
    return _text(secrets.token_bytes(SECRET_BYTES))


def secret_bytes(secret: str) -> bytes:
    """What signs. Raises ConfigurationError for what is no secret of 24 to 64 bytes, as the specification asks."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigurationError("a webhook's secret is `whsec_` and 24 to 64 bytes in base64")
    return key


def signed_headers(message_id: str, timestamp: int, body: bytes, using: Iterable[str]) -> dict[str, str]:
    """The headers of an attempt; one signature per secret. `timestamp`: seconds since 1970, of this attempt."""
    text = f"{message_id}.{timestamp}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.digest(secret_bytes(secret), text, hashlib.sha256)).decode() for secret in using
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def secret_of(secret: str, owner: str | None, salt: str = "") -> str:
    """The secret of a tenant's callbacks, made from the service's own: no tenant can sign what another one trusts.

    Jobs of nobody are signed by the service's own. `salt`: another one for each rotation of the tenant's secret.
    """
    if owner is None and not salt:
        return secret
    text = f"callback:{owner or ''}" + (f" {salt}" if salt else "")
    return _text(hmac.digest(secret_bytes(secret), text.encode(), hashlib.sha256))


async def callback_secrets(client: Redis, given: Sequence[str], owner: str | None) -> tuple[str, ...]:
    """What signs messages to a `callback_url` of this tenant's jobs, the newest first: two while it is rotated.

    `given`: the service's own secrets by its settings; else there is one that is made once and kept in Redis.
    """
    async with client.pipeline(transaction=False) as pipe:
        pipe.get(keys.WEBHOOK_SECRET)
        pipe.hmget(keys.webhook_salt(owner), ["salt", "old", "old_until"])
        pipe.time()
        kept, (salt, old, old_until), (seconds, _) = await pipe.execute()
    if not given and kept is None:
        await client.set(keys.WEBHOOK_SECRET, new_secret(), nx=True)
        kept = await cast("Awaitable[bytes]", client.get(keys.WEBHOOK_SECRET))
    salts = [(salt or b"").decode()]
    if old_until is not None and seconds < int(old_until):
        salts.append(old.decode())
    service = given or (kept.decode(),)
    return tuple(secret_of(secret, owner, each) for each in salts for secret in service)


async def rotate_callback_secret(client: Redis, owner: str | None, *, overlap: float) -> None:
    """Another secret for what goes to a `callback_url` of this tenant's jobs; for `overlap` seconds both sign.

    A second rotation within that time ends the first secret.
    """
    seconds, _ = await cast("Awaitable[tuple[int, int]]", client.time())
    salt = await cast("Awaitable[bytes | None]", client.hget(keys.webhook_salt(owner), "salt"))
    fields: dict[str | bytes, bytes | float | int | str] = {
        "salt": secrets.token_hex(8),
        "old": salt or b"",
        "old_until": seconds + round(overlap),
    }
    await cast("Awaitable[int]", client.hset(keys.webhook_salt(owner), mapping=fields))


def _text(key: bytes) -> str:
    return PREFIX + base64.b64encode(key).decode()
