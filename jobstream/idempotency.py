"""Idempotency keys: held while the first request is under way, then the first answer, for a day.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from jobstream.cancellation import cancel
from jobstream.errors import IdempotencyInFlight
from jobstream.redis import is_unavailable
from jobstream.scripts import Script

logger = logging.getLogger("jobstream.idempotency")

LEASE_SECONDS = 15.0
"""A process that dies within a request lets go of the request's key after this."""

_reserve = Script("reserve")
_unreserve = Script("unreserve")


def scoped(key: str, owner: str | None) -> str:
    """The key as it is stored: it is its owner's (an owner's name has no spaces)."""
    return f"{owner or ''} {key}"


@contextlib.asynccontextmanager
async def reserved(
    client: Redis, key: str, token: str, *, owner: str | None = None, lease: float = LEASE_SECONDS
) -> AsyncIterator[bool]:
    """Hold the key for the request `token` while the block runs; let go of it when the block fails.

    A submit with this token under this key, which ends the reservation, belongs in the block. A key that was answered
    before is not held, and the block given True: the submit will say what became of it. Raises IdempotencyInFlight, and
    redis-py's errors.
    """
    key = scoped(key, owner)
    verdict = await _reserve(client, args=[key, token, round(lease * 1000)])
    if verdict == b"held":
        raise IdempotencyInFlight("The first request with this key has not been answered yet")
    if verdict == b"used":
        yield True
        return
    keeper = asyncio.create_task(_keep(client, key, token, lease), name="idempotency")
    try:
        yield False
    except BaseException as error:
        await cancel(keeper)
        if isinstance(error, Exception) and not is_unavailable(error):
            with contextlib.suppress(Exception):  # Redis is away: the lease ends by itself
                await _unreserve(client, args=[key, token])
        raise
    finally:
        await cancel(keeper)


async def _keep(client: Redis, key: str, token: str, lease: float) -> None:
    while True:
        await asyncio.sleep(lease / 3)
        try:
            await _reserve(client, args=[key, token, round(lease * 1000)])
        except Exception as error:
            if not is_unavailable(error):
                logger.exception("an idempotency key cannot be held")
