"""Tickets: short-lived, signed, for one job or one filter; for what cannot send headers (`EventSource`, a browser's
WebSocket, a link).

A ticket is a JWT (RFC 7519), signed with HMAC-SHA256 under a secret of the service's own. It says what it opens and
whose jobs its holder sees; nothing about it is stored.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from jobstream import keys
from jobstream.caller import Caller, Scope
from jobstream.errors import Unauthorized

PARAMETER = "ticket"
"""The query parameter that carries one."""

NOT_ASKED = frozenset({PARAMETER, "last_event_id"})
"""Query parameters that do not change what is shown."""

SECRET_FRESH_SECONDS = 60.0
"""How long a secret that was read from Redis counts: with other data, it is another one."""

_ALGORITHM = "HS256"
_TYPE = "jobstream-ticket"
_jwt = jwt.PyJWT({"enforce_minimum_key_length": True})

Filter = list[tuple[str, str]]


@dataclass(frozen=True)
class Ticket:
    """What is handed out."""

    text: str
    expires_at: datetime


class Tickets:
    """Makes tickets and reads them. `secret`: the same for all replicas; None: one that is made once and kept in Redis.

    `lifetime`: seconds.
    """

    def __init__(
        self, client: Redis, secret: str | None, *, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._lifetime = lifetime
        self._clock = clock
        self._given = secret.encode() if secret else None
        self._kept: tuple[float, bytes] | None = None

    async def for_job(self, job_id: str, caller: Caller) -> Ticket:
        """A ticket for one job, which the caller must have been seen to see."""
        return await self._make(caller, {"job": job_id})

    async def for_batch(self, batch_id: str, caller: Caller) -> Ticket:
        """A ticket for one batch and its jobs' list, as `for_job`."""
        return await self._make(caller, {"batch": batch_id})

    async def for_filter(self, wanted: Filter, caller: Caller) -> Ticket:
        """A ticket for the jobs that the caller sees and the filter, as query parameters, shows."""
        return await self._make(caller, {"filter": sorted(map(list, wanted))})

    async def caller(self, text: str, connection: HTTPConnection) -> Caller:
        """Who comes with this ticket. Raises Unauthorized when it is none, has expired, or is for something else."""
        claims = await self._read(text)
        asked: dict[str, Any]
        if "job_id" in connection.path_params:
            asked = {"job": connection.path_params["job_id"]}
        elif "batch_id" in connection.path_params:
            asked = {"batch": connection.path_params["batch_id"]}
        else:
            query = connection.query_params.multi_items()
            asked = {"filter": sorted([name, value] for name, value in query if name not in NOT_ASKED)}
        if {name: claims.get(name) for name in ("job", "batch", "filter") if name in claims} != asked:
            raise Unauthorized("The ticket is for something else", given=True)
        return Caller(tenant=claims.get("owner"), scopes=frozenset({Scope.READ}), ticket=True)

    async def _make(self, caller: Caller, opens: dict[str, Any]) -> Ticket:
        expires = int(self._clock() + self._lifetime)
        claims = opens | {"exp": expires} | ({} if caller.sees is None else {"owner": caller.sees})
        text = _jwt.encode(claims, await self._secret(), algorithm=_ALGORITHM, headers={"typ": _TYPE})
        return Ticket(text, datetime.fromtimestamp(expires, UTC))

    async def _read(self, text: str) -> dict[str, Any]:
        try:
            claims = _jwt.decode_complete(
                text,
                await self._secret(),
                algorithms=[_ALGORITHM],
                options={"require": ["exp"], "verify_exp": False},
            )
        except jwt.PyJWTError:
            raise Unauthorized("The ticket is not valid", given=True) from None
        payload: dict[str, Any] = claims["payload"]
        if claims["header"].get("typ") != _TYPE:
            raise Unauthorized("The ticket is not valid", given=True)
        if payload["exp"] <= self._clock():
            raise Unauthorized("The ticket has expired", given=True)
        return payload

    async def _secret(self) -> bytes:
        if self._given is not None:
            return self._given
        if self._kept is None or time.monotonic() > self._kept[0]:
            await self._client.set(keys.TICKET_SECRET, secrets.token_hex(32), nx=True)
            secret: bytes = await self._client.get(keys.TICKET_SECRET)
            self._kept = (time.monotonic() + SECRET_FRESH_SECONDS, secret)
        return self._kept[1]
