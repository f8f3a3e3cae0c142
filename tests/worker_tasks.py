"""Tasks for the worker's tests: each ends, hangs or breaks in a way of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import BaseModel

from jobstream import JobContext, TaskError, task


class Total(BaseModel):
    """A result with a shape."""

    total: int


@task
async def add(a: int, b: int = 1) -> Total:
    """Add two numbers."""
    return Total(total=a + b)


@task
async def who(job: JobContext) -> tuple[str, int]:
    """The job's own id and attempt."""
    return job.id, job.attempt


@task
async def raises() -> None:
    """Goes wrong, with a secret in the traceback's file but not in the message."""
    raise ValueError("no such luck")


@task
async def refuses() -> None:
    """The caller's fault."""
    raise TaskError("the URL is not yours", status=403, code="not-yours")


@task
async def wrong_result() -> Total:
    """Does not keep its promise."""
    result: Any = {"total": "many"}
    return result  # type: ignore[no-any-return]


@task
async def waits(job: JobContext) -> None:
    """Until it is cancelled."""
    job.log("started")
    await asyncio.Event().wait()


@task(timeout=0.2)
async def too_slow() -> None:
    """Longer than it may."""
    await asyncio.Event().wait()


@task
def thread_works(job: JobContext) -> None:
    """Until `progress` tells it to stop."""
    job.log("started")
    while True:
        job.progress(1)
        time.sleep(0.002)


@task(executor="process")
def process_works(job: JobContext) -> None:
    """Until SIGTERM."""
    job.log("started")
    while True:
        time.sleep(0.01)


@task
async def blocks(seconds: float) -> str:
    """Blocks the event loop, as nobody should."""
    time.sleep(seconds)  # noqa: ASYNC251
    return "done"


@task
async def talks(job: JobContext, words: int) -> str:
    """More than can be written one by one."""
    for word in range(words):
        job.progress(word + 1, words, items=[f"item {word}"])
    for word in range(20):
        job.log(f"line {word}")
        job.chunk({"n": word})
    return "said"


@task
async def huge() -> int:
    """An integer that msgpack has no room for."""
    return 10**40


@task
def deaf(job: JobContext) -> None:
    """A thread that listens to nobody, for a while."""
    job.log("started")
    time.sleep(6)
