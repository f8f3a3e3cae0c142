"""Tokens of an identity provider: JWTs (RFC 7519) signed with keys that it publishes as a JWKS (RFC 7517).

Keys are read when they are needed, again when they are old, and again when a token names one that is not among them,
which is how a provider rotates keys; but never more often than every few seconds, whatever tokens come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from jobstream.caller import TENANT, Caller, Scope
from jobstream.errors import IdentityUnavailable, Unauthorized

logger = logging.getLogger("jobstream.auth")

FRESH_SECONDS = 300.0
"""Age at which the keys are read again."""

STALE_SECONDS = 3600.0
"""Age until which keys count while they cannot be read again."""

RETRY_SECONDS = 10.0
"""The shortest time between two reads."""

FETCH_SECONDS = 3.0
KEYS_MAX = 100

_jwt = jwt.PyJWT({"enforce_minimum_key_length": True})


@dataclass(frozen=True)
class TokenRules:
    """What a token must say. `leeway`: seconds that clocks may differ."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    leeway: float
    tenant_claim: str
    scope_claim: str
    scope_prefix: str


class KeySet:
    """The provider's keys by their ids, kept fresh. `fetch` blocks, and gives the JWKS as it came."""

    def __init__(self, fetch: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = -STALE_SECONDS
        self._tried_at = -STALE_SECONDS

    @classmethod
    def at(cls, url: str) -> KeySet:
        """The keys at that URL."""
        client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_SECONDS)
        return cls(client.fetch_data)

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of that id; None: there is none. A token that names no key means the only one.

        Raises IdentityUnavailable when no keys could be read for an hour.
        """
        if self._due(key_id):
            async with self._lock:
                if self._due(key_id):  # nobody has read them meanwhile
                    await self._read()
        if self._clock() - self._read_at >= STALE_SECONDS:
            raise IdentityUnavailable("The keys that tokens are signed with cannot be read")
        if key_id is None and len(self._keys) == 1:
            [only] = self._keys.values()
            return only
        return self._keys.get(key_id)

    def _due(self, key_id: str | None) -> bool:
        now = self._clock()
        if now - self._tried_at < RETRY_SECONDS:
            return False
        return now - self._read_at >= FRESH_SECONDS or (key_id is not None and key_id not in self._keys)

    async def _read(self) -> None:
        try:
            found = jwt.PyJWKSet.from_dict(await asyncio.to_thread(self._fetch)).keys[:KEYS_MAX]
        except Exception as error:  # whatever an address on the network may answer
            logger.warning("the keys of the identity provider cannot be read: %s", error)
        else:
            self._keys = {key.key_id: key for key in found if key.public_key_use in (None, "sig")}
            self._read_at = self._clock()
        self._tried_at = self._clock()


class TokenBook:
    """Checks tokens."""

    def __init__(self, keys: KeySet, rules: TokenRules) -> None:
        self._keys = keys
        self._rules = rules

    async def caller(self, text: str) -> Caller:
        """Who comes with this token. Raises Unauthorized, IdentityUnavailable."""
        rules = self._rules
        try:
            header = jwt.get_unverified_header(text)
            if header.get("alg") not in rules.algorithms:
                raise jwt.InvalidAlgorithmError
            key = await self._keys.key(header.get("kid"))
            if key is None:
                raise jwt.InvalidKeyError
            claims = _jwt.decode(
                text,
                key,
                algorithms=list(rules.algorithms),
                issuer=rules.issuer,
                audience=rules.audience,
                leeway=rules.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired", given=True) from None
        except jwt.PyJWTError:
            raise Unauthorized("The token is not valid", given=True) from None
        tenant = claims.get(rules.tenant_claim)
        if not isinstance(tenant, str) or not TENANT.match(tenant):
            raise Unauthorized(f"The token names no tenant in its claim {rules.tenant_claim!r}", given=True)
        return Caller(tenant=tenant, scopes=_scopes(claims.get(rules.scope_claim), rules.scope_prefix))


def _scopes(claim: object, prefix: str) -> frozenset[Scope]:
    """Those that are ours: of `openid jobstream:read` it is `read`. A list of strings is taken, too."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    ours = {word.removeprefix(prefix) for word in words if isinstance(word, str) and word.startswith(prefix)}
    return frozenset(scope for scope in Scope if scope in ours)
