"""`jobstream cancel` and `jobstream retry` over a filter: hand in the job that does it, and follow it."""

from __future__ import annotations

import sys
from typing import Literal

import click

from jobstream.bulk import BulkResult
from jobstream.client import BulkFilter, Client
from jobstream.job import JobStatus
from jobstream_cli.commands import follow_to_the_end
from jobstream_cli.exits import Exit
from jobstream_cli.following import Display, Silent, choose_display
from jobstream_cli.service import Service
from jobstream_cli.views import JobView

__all__ = ["BulkFilter", "change"]


async def change(service: Service, order: Literal["cancel", "retry"], wanted: BulkFilter, *, as_json: bool) -> Exit:
    """Print what has been done; with `as_json` the result as it is."""
    async with Client(service.url, token=service.token) as client:
        handle = await (client.cancel_jobs(**wanted) if order == "cancel" else client.retry_jobs(**wanted))
        click.echo(handle.id, err=True)
        view = JobView(handle.id, f"{order}-jobs")
        display: Display = Silent() if as_json else choose_display([view], sys.stderr)
        await follow_to_the_end(service, client, [view], display, timeout=None)
        if view.status == JobStatus.SUCCEEDED:
            result = await handle.result(type=BulkResult)
            said = f"{result.matched:,} matched, {result.changed:,} changed, {result.skipped:,} skipped"
            click.echo(result.model_dump_json() if as_json else said)
        return view.exit
