"""`jobstream submit --batch`: a file of jobs, a line each, handed in by the thousands."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TextIO, cast

import click
from pydantic import JsonValue

from jobstream.client import BatchItem, Client, JobHandle, Rejected
from jobstream_cli.exits import Exit
from jobstream_cli.screen import clean
from jobstream_cli.service import Service
from jobstream_cli.views import exit_of

BATCH_JOBS = 10_000
"""What the service takes at once."""


class Defaults(NamedTuple):
    """Options of the jobs whose lines do not say otherwise."""

    queue: str | None = None
    tags: Sequence[str] = ()
    after: Sequence[str] = ()
    delay: float | None = None
    priority: int | None = None

    def of(self, item: dict[str, JsonValue]) -> BatchItem:
        """The job with what it lacks. The service looks at what the line says."""
        given = {name: value for name, value in self._asdict().items() if value not in (None, ())}
        return cast("BatchItem", given | item)


class Line(NamedTuple):
    """A line that holds a job."""

    number: int
    item: BatchItem


async def submit(service: Service, source: TextIO, defaults: Defaults, *, key: str | None, as_json: bool) -> Exit:
    """Hand all of it in; print the ids, one a line, as soon as they are stored.

    A line that is no JSON object, and a part that is refused, end it: the exit code and a sentence that names the line.
    """
    key, stored, part = key or uuid.uuid4().hex, 0, 0
    lines = read_lines(source, defaults)
    async with Client(service.url, token=service.token, timeout=120) as client:
        while found := await asyncio.to_thread(lambda: list(islice(lines, BATCH_JOBS))):
            part += 1
            try:
                handles = await client.submit_batch([line.item for line in found], idempotency_key=f"{key}-{part}")
            except Rejected as error:
                _explain(error, found, stored)
                return exit_of(error)
            _print_ids(handles, as_json=as_json)
            stored += len(handles)
            if sys.stderr.isatty():
                click.echo(f"\r{stored:,} jobs handed in", err=True, nl=False)
    if sys.stderr.isatty() and stored:
        click.echo(err=True)
    return Exit.OK


def read_lines(source: TextIO, defaults: Defaults) -> Iterator[Line]:
    """The jobs of a file; empty lines are none. Raises click.UsageError for a line that is no JSON object."""
    for number, text in enumerate(source, 1):
        if not text.strip():
            continue
        try:
            item = json.loads(text)
        except ValueError as error:
            raise click.UsageError(f"line {number} is not JSON: {error}") from None
        if not isinstance(item, dict):
            raise click.UsageError(f'line {number} is no JSON object: {{"task": …, "input": {{…}}}} is needed')
        yield Line(number, defaults.of(item))


def _print_ids(handles: Sequence[JobHandle], *, as_json: bool) -> None:
    click.echo("\n".join(json.dumps({"id": handle.id}) if as_json else handle.id for handle in handles))


def _explain(error: Rejected, lines: Sequence[Line], stored: int) -> None:
    """The service counts from the part's first job; people count lines."""
    wrong = error.problem.errors
    click.echo(clean(f"error: {error.problem.title}" if wrong else f"error: {error}"), err=True)
    for each in wrong:
        number, _, rest = each.pointer.removeprefix("/").partition("/")
        where = f"line {lines[int(number)].number}" if number.isdecimal() else "the batch"
        click.echo(clean(f"{where}: {'/' + rest if rest else ''} {each.detail}"), err=True)
    before = f"{stored:,} jobs of the lines before were stored" if stored else "nothing was stored"
    click.echo(f"{before}; lines {lines[0].number} to {lines[-1].number} were refused as a whole", err=True)
