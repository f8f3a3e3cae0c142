"""What the API is told about who may use it."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.errors import ConfigurationError


class AuthSettings(BaseSettings):
    """Who may use the service."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    auth: Literal["on", "open"] | None = Field(
        None,
        description="on: callers need an API key or a token. open: everybody may do everything, wherever it listens. "
        "Empty: open on a loopback address, for development; on any other the service does not start.",
    )


def check_exposure(settings: AuthSettings, host: str) -> None:
    """Raises ConfigurationError when a service without authentication would listen where others reach it."""
    if settings.auth is None and not is_loopback(host):
        raise ConfigurationError(
            f"JOBSTREAM_AUTH is not set, and {host} is not a loopback address: everybody who reaches it could run and "
            "read everything. Set JOBSTREAM_AUTH=on and make a key with `jobstream keys create`, or "
            "JOBSTREAM_AUTH=open if that is what you want."
        )


def is_loopback(host: str) -> bool:
    """True for `localhost` and the addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
