"""`jobstream schedules`: see, make, pause, resume, run and delete schedules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import click
from pydantic import JsonValue

from jobstream.client import Client, Schedule
from jobstream_cli.bars import duration
from jobstream_cli.exits import Exit
from jobstream_cli.screen import clean, look_of, pad
from jobstream_cli.service import Service


@dataclass(frozen=True)
class Plan:
    """A schedule to be."""

    name: str
    task: str
    input: Mapping[str, JsonValue]
    cron: str
    timezone: str
    queue: str | None = None
    tags: Sequence[str] = ()
    priority: int | None = None


async def list_all(service: Service, *, owner: str | None, as_json: bool) -> Exit:
    """Print them as a table, or one object a line."""
    async with Client(service.url, token=service.token) as client:
        found = [schedule async for schedule in client.schedules(owner=owner)]
    if as_json:
        for schedule in found:
            click.echo(schedule.model_dump_json())
    else:
        _print_table(found)
    return Exit.OK


async def create(service: Service, plan: Plan, *, owner: str | None, as_json: bool) -> Exit:
    """Make it, or change it, and print when it is due next."""
    async with Client(service.url, token=service.token) as client:
        schedule = await client.put_schedule(
            plan.name,
            plan.task,
            plan.input,
            cron=plan.cron,
            timezone=plan.timezone,
            owner=owner,
            queue=plan.queue,
            tags=plan.tags,
            priority=plan.priority,
        )
    _say(schedule, as_json=as_json)
    return Exit.OK


async def change(
    service: Service, name: str, order: Literal["pause", "resume"], *, owner: str | None, as_json: bool
) -> Exit:
    """Pause or resume it."""
    async with Client(service.url, token=service.token) as client:
        call = client.pause_schedule if order == "pause" else client.resume_schedule
        _say(await call(name, owner=owner), as_json=as_json)
    return Exit.OK


async def run(service: Service, name: str, *, owner: str | None) -> Exit:
    """Run it once now; print the job's id."""
    async with Client(service.url, token=service.token) as client:
        click.echo((await client.run_schedule(name, owner=owner)).id)
    return Exit.OK


async def delete(service: Service, name: str, *, owner: str | None) -> Exit:
    """Forget it."""
    async with Client(service.url, token=service.token) as client:
        await client.delete_schedule(name, owner=owner)
    click.echo(f"{name} deleted; its jobs stay", err=True)
    return Exit.OK


async def next_ticks(service: Service, name: str, *, count: int, owner: str | None) -> Exit:
    """Print when it is due next: its own local time, and UTC."""
    async with Client(service.url, token=service.token) as client:
        for tick in await client.next_ticks(name, count=count, owner=owner):
            click.echo(_time(tick))
    return Exit.OK


def _say(schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        click.echo(schedule.model_dump_json())
    else:
        due = f", next at {_time(schedule.next_at)}" if schedule.next_at else ""
        click.echo(f"{schedule.name} {schedule.state}{due}")


_COLOURS = {"active": "green", "paused": "yellow", "task-missing": "red"}


def _print_table(schedules: Sequence[Schedule]) -> None:
    if not schedules:
        click.echo("no schedules", err=True)
        return
    colour, now = look_of(sys.stdout).colour, datetime.now(UTC)
    names = [(each.owner + "/" if each.owner else "") + each.name for each in schedules]
    wide = max(4, *map(len, names))
    tasks = max(4, *(len(each.task) for each in schedules))
    crons = [f"{each.cron} {each.timezone}" for each in schedules]
    cells = max(4, *map(len, crons))
    click.echo(f"{'NAME':{wide}}  {'TASK':{tasks}}  {'CRON':{cells}}  {'STATE':12}  {'NEXT':>8}  LAST")
    for each, name, cron in zip(schedules, names, crons, strict=True):
        state = pad(each.state, 12)
        painted = click.style(state, fg=_COLOURS.get(each.state)) if colour else state
        due = f"in {duration(max((each.next_at - now).total_seconds(), 0.0))}" if each.next_at else ""
        last = f"{_time(each.last.at)} {each.last.status or ''}".rstrip() if each.last else ""
        line = f"{name:{wide}}  {each.task:{tasks}}  {cron:{cells}}  {painted}  {due:>8}  {last}"
        click.echo(clean(line).rstrip() if not colour else line.rstrip())


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
