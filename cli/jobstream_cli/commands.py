"""The commands that speak to a running service: each takes what was asked and returns its exit code."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
from pydantic import JsonValue

from jobstream.client import Client, ClientError
from jobstream.job import Job, JobStatus
from jobstream_cli.bars import count, duration, left, percent, plain_line
from jobstream_cli.exits import Exit, worst
from jobstream_cli.following import Display, Lines, Ndjson, Silent, choose_display, follow
from jobstream_cli.screen import clean, look_of, pad
from jobstream_cli.service import Service
from jobstream_cli.views import JobView, exit_of

Follow = Literal["no", "watch", "wait"]
ListForm = Literal["table", "json", "ids"]


@dataclass(frozen=True)
class Order:
    """A job to hand in."""

    task: str
    input: dict[str, JsonValue]
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    queue: str | None = None
    tags: Sequence[str] = ()
    after: Sequence[str] = ()
    delay: float | None = None
    priority: int | None = None
    key: str | None = None


async def submit(
    service: Service, order: Order, *, follow: Follow = "no", timeout: float | None = None, as_json: bool = False
) -> Exit:
    """Hand it in; print the id, or wait and print the result. With `as_json` the job, as it is in the end."""
    async with Client(service.url, token=service.token) as client:
        handle = await client.submit(
            order.task,
            order.input,
            order.files,
            queue=order.queue,
            tags=order.tags,
            after=order.after,
            delay=order.delay,
            priority=order.priority,
            idempotency_key=order.key or uuid.uuid4().hex,  # so that a cut on the way is healed by sending it again
        )
        if follow == "no":
            _print(_dump(await handle.get()) if as_json else handle.id)
            return Exit.OK
        click.echo(handle.id, err=True)
        view = JobView(handle.id, order.task)
        display: Display = Silent() if follow == "wait" or as_json else choose_display([view], sys.stderr)
        await follow_to_the_end(service, client, [view], display, timeout=timeout)
        if as_json and view.fault is None:
            _print(_dump(view.job or await handle.get()))
        elif view.status == JobStatus.SUCCEEDED:
            _print_result(await handle.result())
        return view.exit


async def watch(
    service: Service, ids: Sequence[str], *, timeout: float | None = None, logs: bool = False, as_json: bool = False
) -> Exit:
    """Show the jobs until they are done. The worst outcome is the exit code."""
    views = [JobView(job_id) for job_id in ids]
    display: Display = Ndjson(sys.stdout) if as_json else choose_display(views, sys.stderr, logs=logs)
    async with Client(service.url, token=service.token) as client:
        await follow_to_the_end(service, client, views, display, timeout=timeout)
    return worst(view.exit for view in views)


async def list_jobs(
    service: Service, *, status: str | None, task: str | None, tag: str | None, limit: int, form: ListForm
) -> Exit:
    """Print the latest jobs as a table, as NDJSON or as bare ids."""
    async with Client(service.url, token=service.token) as client:
        jobs = client.jobs(status=status, task=task, tag=tag, limit=limit)
        if form == "table":
            _print_table([job async for job in jobs])
        else:
            async for job in jobs:
                _print(_dump(job) if form == "json" else job.id)
    return Exit.OK


async def show(service: Service, job_id: str, *, as_json: bool = False) -> Exit:
    """Print a job. That it has failed is no failure of showing it."""
    async with Client(service.url, token=service.token) as client:
        job = await client.job(job_id).get()
    if as_json:
        _print(_dump(job))
    else:
        _print_job(job)
    return Exit.OK


async def change(
    service: Service, ids: Sequence[str], order: Literal["cancel", "retry"], *, as_json: bool = False
) -> Exit:
    """Ask each job to stop or to run again, and print what it says; the worst trouble is the exit code."""
    codes: list[Exit] = []
    async with Client(service.url, token=service.token) as client:
        for job_id in ids:
            try:
                handle = client.job(job_id)
                job = await (handle.cancel() if order == "cancel" else handle.retry())
            except ClientError as error:
                click.echo(clean(f"{job_id}: {error}"), err=True)
                codes.append(exit_of(error))
            else:
                _print(_dump(job) if as_json else f"{job.id} {job.status}")
    return worst(codes)


async def follow_to_the_end(
    service: Service, client: Client, views: Sequence[JobView], display: Display, *, timeout: float | None
) -> None:
    """Follow to the end; whoever leaves early is told that the jobs go on, and how to come back."""
    try:
        await follow(client, views, display, timeout=timeout)
    except asyncio.CancelledError:  # Ctrl-C
        _say_how_to_return(service, views, "detached")
        raise
    if any(not view.done for view in views):
        _say_how_to_return(service, views, "time is over")
    if not isinstance(display, Lines | Ndjson):  # those have said it
        for view in views:
            if view.done and view.exit:
                click.echo(plain_line(view), err=True)  # whole, where a bar had no room


def _say_how_to_return(service: Service, views: Sequence[JobView], why: str) -> None:
    ids = " ".join(view.id for view in views if not view.done)
    if ids:
        click.echo(f"{why}; what is not done goes on. Watch it again: {service.command} watch {ids}", err=True)


def _print(text: str) -> None:
    """A line of data, at once: whoever reads our pipe may be waiting for it."""
    click.echo(text)


def _dump(job: Job) -> str:
    return job.model_dump_json()


def _print_result(result: JsonValue | bytes) -> None:
    if isinstance(result, bytes):
        click.echo(result, nl=False)
    else:
        _print(json.dumps(result, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


_COLOURS = {JobStatus.SUCCEEDED: "green", JobStatus.FAILED: "red", JobStatus.RUNNING: "cyan"}


def _print_table(jobs: Sequence[Job]) -> None:
    if not jobs:
        click.echo("no jobs", err=True)
        return
    colour = look_of(sys.stdout).colour
    id_cells, task_cells = max(len(job.id) for job in jobs), max(4, *(len(job.task) for job in jobs))
    _print(f"{'ID':{id_cells}}  {'TASK':{task_cells}}  {'STATUS':10}  {'AGE':>6}  MESSAGE")
    for job in jobs:
        status = pad(job.status, 10)
        painted = click.style(status, fg=_COLOURS.get(job.status)) if colour else status
        view = JobView(job.id)
        view.take(job)
        line = f"{job.id:{id_cells}}  {job.task:{task_cells}}  {painted}  {_age(job):>6}  {clean(view.message)}"
        _print(line.rstrip())


def _age(job: Job) -> str:
    return duration(max((datetime.now(UTC) - job.created_at).total_seconds(), 0.0))


def _print_job(job: Job) -> None:
    progress = job.progress
    took = (job.finished_at - job.started_at).total_seconds() if job.started_at and job.finished_at else None
    rows: list[tuple[str, str | None]] = [
        ("id", job.id),
        ("task", job.task),
        ("status", job.status),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("progress", _progress(job)),
        ("message", progress.message if progress and not job.done else None),
        ("items", f"{len(progress.items)}" if progress and progress.items else None),
        ("queue", job.queue),
        ("tags", " ".join(job.tags)),
        ("after", " ".join(job.after)),
        ("batch", job.batch),
        ("created", job.created_at.isoformat(timespec="milliseconds")),
        ("run at", job.run_at.isoformat(timespec="milliseconds") if job.run_at else None),
        ("took", duration(took) if took is not None else None),
        ("worker", job.worker),
        ("error", f"{job.error.title}: {job.error.detail} ({job.error.code})" if job.error else None),
        ("result", json.dumps(job.result, ensure_ascii=False) if job.result is not None else None),
    ]
    for name, value in rows:
        if value:
            _print(f"{name:9} {clean(value)}")


def _progress(job: Job) -> str | None:
    if job.progress is None:
        return None
    parts = (percent(job.progress), count(job.progress), "" if job.done else left(job.progress))
    return "  ".join(part for part in parts if part)
