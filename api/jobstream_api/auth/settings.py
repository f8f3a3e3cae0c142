"""What the API is told about who may use it."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.errors import ConfigurationError

ALGORITHMS = frozenset("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split())
"""Signatures with a key pair (RFC 7518, RFC 8037)."""


class AuthSettings(BaseSettings):
    """Who may use the service."""

    model_config = SettingsConfigDict(
        env_prefix="JOBSTREAM_",
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # a secret that is too short is one all the same
    )

    auth: Literal["on", "open"] | None = Field(
        None,
        description="on: callers need an API key or a token. open: everybody may do everything, wherever it listens. "
        "Empty: open on a loopback address, for development; on any other the service does not start.",
    )
    ticket_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="Signs tickets; the same for all API processes, 32 characters at least. "
        "Empty: one that is made once and kept in Redis.",
    )
    ticket_seconds: float = Field(120.0, ge=1, le=3600, description="How long a ticket is valid.")
    jwt_jwks_url: str | None = Field(
        None,
        description="Where the identity provider publishes its keys (JWKS): https, or http on a loopback address. "
        "With it, callers may come with the provider's tokens (JWT), and JOBSTREAM_AUTH is on.",
    )
    jwt_issuer: str | None = Field(None, description="`iss` of the tokens. Required with a JWKS.")
    jwt_audience: str | None = Field(None, description="`aud` of the tokens. Required with a JWKS.")
    jwt_algorithms: str = Field(
        "RS256,ES256,EdDSA",
        description="Signatures that count, separated by commas; those with shared secrets (HS…) never do.",
    )
    jwt_leeway_seconds: float = Field(30.0, ge=0, le=300, description="How much the provider's clock may differ.")
    jwt_tenant_claim: str = Field(
        "sub", min_length=1, description="The claim that names the tenant. `sub`: every user is a tenant."
    )
    jwt_scope_claim: str = Field(
        "scope", min_length=1, description="The claim that holds the scopes: words in a string, or a list."
    )
    jwt_scope_prefix: str = Field(
        "jobstream:", description="What our scopes begin with there: `jobstream:submit jobstream:read`."
    )

    @property
    def asks(self) -> bool:
        """True when callers must say who they are."""
        return self.auth == "on" or self.jwt_jwks_url is not None

    @model_validator(mode="after")
    def _jwt(self) -> Self:
        if self.jwt_jwks_url is None:
            return self
        if self.auth == "open":
            raise ValueError("JOBSTREAM_AUTH=open contradicts JOBSTREAM_JWT_JWKS_URL")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError("JOBSTREAM_JWT_JWKS_URL needs JOBSTREAM_JWT_ISSUER and JOBSTREAM_JWT_AUDIENCE")
        url = urlsplit(self.jwt_jwks_url)
        if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname))):
            raise ValueError("JOBSTREAM_JWT_JWKS_URL must begin with https://: whoever changes the keys may do all")
        if (unknown := set(self.algorithms) - ALGORITHMS) or not self.algorithms:
            known = ", ".join(sorted(ALGORITHMS))
            raise ValueError(f"JOBSTREAM_JWT_ALGORITHMS: {', '.join(sorted(unknown)) or 'nothing'} is none of {known}")
        return self

    @property
    def algorithms(self) -> tuple[str, ...]:
        """`jwt_algorithms`, one by one."""
        return tuple(word.strip() for word in self.jwt_algorithms.split(",") if word.strip())


def check_exposure(settings: AuthSettings, host: str) -> None:
    """Raises ConfigurationError when a service without authentication would listen where others reach it."""
    if settings.auth is None and not settings.asks and not is_loopback(host):
        raise ConfigurationError(
            f"JOBSTREAM_AUTH is not set, and {host} is not a loopback address: everybody who reaches it could run and "
            "read everything. Set JOBSTREAM_AUTH=on and make a key with `jobstream keys create`, or "
            "JOBSTREAM_AUTH=open if that is what you want."
        )


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """True for `localhost` and the addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
