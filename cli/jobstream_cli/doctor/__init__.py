"""`jobstream doctor`: looks at Redis and at whoever uses it, says what is wrong, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from redis.exceptions import ConnectionError

from jobstream.errors import ConfigurationError
from jobstream.files import FileSettings
from jobstream.redis import RedisSettings, UrlSource, is_unavailable
from jobstream_cli.doctor import fleet, permissions, server, storage
from jobstream_cli.doctor.findings import Finding, Level, error, ok
from jobstream_cli.exits import Exit
from jobstream_cli.screen import clean, look_of

COLOURS: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


async def run(*, grace: float | None, drain: float, strict: bool, as_json: bool) -> Exit:
    """Examine and print. FAILED for an error (with `strict` for a warning, too), UNREACHABLE without Redis."""
    try:
        source = UrlSource.from_settings(RedisSettings())
    except ConfigurationError as wrong:
        click.echo(f"error: {wrong}", err=True)
        return Exit.USAGE
    found, reached = await examine(source, grace=grace, drain=drain, files=FileSettings())
    _print_json(found) if as_json else _print(found)
    if not reached:
        return Exit.UNREACHABLE
    bad: set[Level] = {"error", "warning"} if strict else {"error"}
    return Exit.FAILED if any(each.level in bad for each in found) else Exit.OK


async def examine(
    source: UrlSource, *, grace: float | None, drain: float, files: FileSettings | None = None
) -> tuple[list[Finding], bool]:
    """All findings, and whether Redis could be reached. `files`: where the files of jobs should be."""
    client, subscriber = source.client(), source.subscriber()
    found: list[Finding] = []
    try:
        await client.ping()
        found += [ok("redis", source.describe())]
        found += await permissions.examine(client, subscriber)
        if any(each.check.startswith("acl-") for each in found):
            return found, True  # what is denied would be found again and again
        found += await server.examine(client)
        found += await fleet.examine(client, grace=grace, drain=drain)
        if files is not None:
            found += await storage.examine(client, files)
    except Exception as wrong:
        if not is_unavailable(wrong) and not isinstance(wrong, ConnectionError):  # a refused password is one
            raise
        advice = "See JOBSTREAM_REDIS_URL: host, port, user and password; and whether Redis runs, and lets us in."
        found.append(error("redis", f"{source.describe()}: {wrong or type(wrong).__name__}", advice))
        return found, False
    finally:
        await client.aclose()
        await subscriber.aclose()
    return found, True


def _print(found: Sequence[Finding]) -> None:
    colour = look_of(sys.stdout).colour
    for each in found:
        level = f"{each.level:7}"
        click.echo(
            f"{click.style(level, fg=COLOURS[each.level]) if colour else level}  {each.check:15}  {clean(each.detail)}"
        )
        if each.advice:
            click.echo(f"{'':26}→ {clean(each.advice)}")


def _print_json(found: Sequence[Finding]) -> None:
    counted = {level: sum(each.level == level for each in found) for level in COLOURS}
    click.echo(json.dumps({"counts": counted, "findings": [asdict(each) for each in found]}, ensure_ascii=False))
