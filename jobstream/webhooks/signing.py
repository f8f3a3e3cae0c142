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


def secret_of(secret: str, owner: str | None) -> str:
    """The secret of a tenant's callbacks, made from the service's own: no tenant can sign what another one trusts.

    Jobs of nobody are signed by the service's own.
    """
    if owner is None:
        return secret
    return _text(hmac.digest(secret_bytes(secret), f"callback:{owner}".encode(), hashlib.sha256))


async def service_secrets(client: Redis, given: Sequence[str]) -> tuple[str, ...]:
    """Those of the settings, or one that is made once and kept in Redis."""
    if given:
        return tuple(given)
    kept = await cast("Awaitable[bytes | None]", client.get(keys.WEBHOOK_SECRET))
    if kept is None:
        await client.set(keys.WEBHOOK_SECRET, new_secret(), nx=True)
        kept = await cast("Awaitable[bytes]", client.get(keys.WEBHOOK_SECRET))
    return (kept.decode(),)


async def callback_secrets(client: Redis, given: Sequence[str], owner: str | None) -> tuple[str, ...]:
    """What signs messages to a `callback_url` of this tenant's jobs."""
    return tuple(secret_of(secret, owner) for secret in await service_secrets(client, given))


def _text(key: bytes) -> str:
    return PREFIX + base64.b64encode(key).decode()
