"""`jobstream keys`: API keys, made, listed, rotated and revoked in Redis itself. The service need not run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

import click
from redis.asyncio import Redis

from jobstream.apikeys import PREFIX, ApiKey, create_key, list_keys, revoke_key, rotate_key
from jobstream.caller import Scope
from jobstream.errors import ConfigurationError, InvalidParameter
from jobstream.job import wire_time
from jobstream.redis import RedisSettings, UrlSource, is_unavailable
from jobstream_cli.exits import Exit, worst
from jobstream_cli.screen import clean

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])\Z")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """`90d`, `12h`, `30m`, `45s` in seconds. Raises click.BadParameter."""
    match = _DURATION.match(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no duration: 90d, 12h, 30m or 45s")
    return float(match[1]) * _SECONDS[match[2]]


async def on_redis(command: Callable[[Redis], Coroutine[Any, Any, Exit]]) -> Exit:
    """Run a command with a client of the configured Redis; what is wrong with that is one sentence and an exit code."""
    try:
        source = UrlSource.from_settings(RedisSettings())
    except ConfigurationError as error:
        return _wrong(str(error), Exit.USAGE)
    client = source.client()
    try:
        return await command(client)
    except InvalidParameter as error:
        return _wrong(error.detail, Exit.USAGE)
    except Exception as error:
        if not is_unavailable(error):
            raise
        return _wrong(f"{source.describe()}: {error or type(error).__name__}", Exit.UNREACHABLE)
    finally:
        await client.aclose()


async def create(
    client: Redis, *, tenant: str, scopes: Sequence[str], name: str, lifetime: float | None, as_json: bool
) -> Exit:
    """Make a key and print it, once."""
    key, text = await create_key(client, tenant=tenant, scopes=map(Scope, scopes), name=name, lifetime=lifetime)
    _print_secret(key, text, as_json=as_json)
    return Exit.OK


async def rotate(client: Redis, key_id: str, *, overlap: float, as_json: bool) -> Exit:
    """Give a key another secret and print it, once."""
    rotated = await rotate_key(client, _id(key_id), overlap=overlap)
    if rotated is None:
        return _wrong(f"there is no key {key_id}", Exit.NOT_FOUND)
    key, text = rotated
    _print_secret(key, text, as_json=as_json)
    if key.old_until is not None:
        click.echo(f"the secret before it is valid until {wire_time(key.old_until)}", err=True)
    return Exit.OK


async def revoke(client: Redis, ids: Sequence[str]) -> Exit:
    """Forget keys. API processes do so within a few seconds."""
    codes = []
    for key_id in ids:
        if await revoke_key(client, _id(key_id)):
            click.echo(f"{PREFIX}{_id(key_id)} revoked")
            codes.append(Exit.OK)
        else:
            codes.append(_wrong(f"there is no key {key_id}", Exit.NOT_FOUND))
    return worst(codes)


async def show(client: Redis, *, as_json: bool) -> Exit:
    """Print all keys, without their secrets: nobody has those."""
    found = await list_keys(client)
    if as_json:
        for key in found:
            click.echo(json.dumps(_members(key)))
        return Exit.OK
    rows = [("ID", "TENANT", "SCOPES", "EXPIRES", "LAST USED", "NAME"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        click.echo(clean(line.rstrip()))
    return Exit.OK


def _print_secret(key: ApiKey, text: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_members(key) | {"key": text}))
        return
    click.echo("this key is not shown again; send it as `Authorization: Bearer …` or with --token:", err=True)
    click.echo(text)


def _members(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.prefix,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "name": key.name,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at),
        "expired": key.expired,
        "used_at": _time(key.used_at),
        "old_secret_until": _time(key.old_until),
    }


def _row(key: ApiKey) -> tuple[str, ...]:
    expires = "expired" if key.expired else _time(key.expires_at) or "never"
    return key.prefix, key.tenant, ",".join(sorted(key.scopes)), expires, _time(key.used_at) or "never", key.name


def _time(value: datetime | None) -> str | None:
    return None if value is None else wire_time(value)


def _id(text: str) -> str:
    """The id, of which people copy the visible prefix, too. A whole key is taken apart: its secret goes nowhere."""
    return text.removeprefix(PREFIX).partition("_")[0]


def _wrong(text: str, code: Exit) -> Exit:
    click.echo(clean(f"error: {text}"), err=True)
    return code
