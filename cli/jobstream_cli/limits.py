"""`jobstream limits`: what single tenants may, set in Redis itself. The service need not run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import click
from redis.asyncio import Redis

from jobstream.limits import UNLIMITED_RATE, Rate, clear_limits, get_limits, list_limits, set_limits
from jobstream_cli.exits import Exit, worst
from jobstream_cli.screen import clean


async def change(client: Redis, tenant: str, *, rate: str | None, running: int | None, weight: int | None) -> Exit:
    """Set what is given; the rest stays as it is."""
    limits = await get_limits(client, tenant)
    if rate is not None:
        try:
            limits = replace(limits, rate=Rate.parse(rate) or UNLIMITED_RATE)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    if running is not None:
        limits = replace(limits, running=running)
    if weight is not None:
        limits = replace(limits, weight=weight)
    await set_limits(client, tenant, limits)
    return Exit.OK


async def clear(client: Redis, tenants: Sequence[str]) -> Exit:
    """Forget what was set."""
    codes = []
    for tenant in tenants:
        if await clear_limits(client, tenant):
            codes.append(Exit.OK)
        else:
            click.echo(clean(f"error: nothing was set for {tenant}"), err=True)
            codes.append(Exit.NOT_FOUND)
    return worst(codes)


async def show(client: Redis, *, as_json: bool) -> Exit:
    """Print what was set; a dash stands for what the settings say."""
    found = await list_limits(client)
    rows = [("TENANT", "RATE", "RUNNING", "WEIGHT")]
    for tenant, limits in found.items():
        rate = None if limits.rate is None else str(limits.rate)
        if as_json:
            click.echo(json.dumps({"tenant": tenant, "rate": rate, "running": limits.running, "weight": limits.weight}))
        running, weight = ("-" if value is None else str(value) for value in (limits.running, limits.weight))
        rows.append((tenant, rate or "-", running, weight))
    if not as_json:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
            click.echo(clean(line.rstrip()))
    return Exit.OK
