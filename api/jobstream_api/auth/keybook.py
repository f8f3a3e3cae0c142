"""API keys as this process has read them: one read per key in a few seconds, not one per request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from redis.asyncio import Redis

from jobstream.apikeys import ApiKey, id_of, note_use, read_key
from jobstream.caller import Caller
from jobstream.errors import Unauthorized
from jobstream.redis import is_unavailable

FRESH_SECONDS = 5.0
"""How long a key that was read counts: so long a revoked one may still be taken."""

KEYS_KEPT = 10_000


class KeyBook:
    """Checks keys. Those that are not there are not remembered: a new key is valid at once."""

    def __init__(self, client: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._read: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()

    async def caller(self, text: str) -> Caller:
        """Who comes with this key. Raises Unauthorized, and redis-py's errors."""
        key_id = id_of(text)
        key = await self._key(key_id) if key_id else None
        if key is None or not key.matches(text):
            raise Unauthorized("The API key is not valid", given=True)
        if key.expired:
            raise Unauthorized("The API key has expired", given=True)
        await self._note_use(key)
        return key.caller

    async def _note_use(self, key: ApiKey) -> None:
        try:
            used = await note_use(self._client, key)
        except Exception as error:
            if not is_unavailable(error):
                raise
            return  # it is a note, no more
        if used is not key and (held := self._read.get(key.id)):
            self._read[key.id] = (held[0], used)

    async def _key(self, key_id: str) -> ApiKey | None:
        until, known = self._read.get(key_id, (0.0, None))
        if known is not None and self._clock() < until:
            return known
        key = await read_key(self._client, key_id)
        if key is None:
            self._read.pop(key_id, None)
            return None
        self._read[key_id] = (self._clock() + _seconds_fresh(key), key)
        self._read.move_to_end(key_id)
        if len(self._read) > KEYS_KEPT:
            self._read.popitem(last=False)
        return key


def _seconds_fresh(key: ApiKey) -> float:
    """Until it must be read again: also when it, or its old secret, expires before."""
    ends = [end for end in (key.expires_at, key.old_until) if end is not None]
    return min([FRESH_SECONDS, *((end - key.now).total_seconds() for end in ends)])
