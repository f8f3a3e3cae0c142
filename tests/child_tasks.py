"""Tasks that submit others, one for each way to run."""

from __future__ import annotations

import asyncio

from jobstream import JobContext, RetryPolicy, TaskError, task
from jobstream.errors import JobConflict, UnknownTask

TWICE = RetryPolicy(attempts=2, backoff=0.01)


@task
async def double(n: int) -> int:
    """A child."""
    return 2 * n


@task
async def hangs(n: int = 0) -> None:
    """A child that has to be stopped."""
    await asyncio.Event().wait()


@task
async def refuses(n: int = 0) -> None:
    """A child that fails."""
    raise TaskError("no")


@task
async def on_loop(job: JobContext, count: int) -> list[int]:
    """Submits on the event loop."""
    for n in range(count):
        await job.submit(double, {"n": n})
    return [child.result for child in await job.wait()]


@task
def in_thread(job: JobContext, count: int) -> list[int]:
    """Submits from a thread."""
    children = [job.submit("double", {"n": n}).get() for n in range(count)]
    return [child.result for child in job.wait(*children).get()]


@task(executor="process")
def in_process(job: JobContext, count: int) -> list[int]:
    """Submits from another process."""
    children = [job.submit("double", {"n": n}).get() for n in range(count)]
    try:
        job.submit("nobody").get()
    except UnknownTask:
        return [child.result for child in job.wait(*children).get()]
    return []


@task(retry=TWICE)
async def twice(job: JobContext) -> list[str]:
    """Fails once, with its children under way; has two that are alike, and one with a key."""
    wanted = [job.submit(double, {"n": n}) for n in (1, 1, 2)]
    children = [await one for one in wanted] + [await job.submit(double, {"n": job.attempt}, key="k")]
    await job.wait(*children)
    if job.attempt == 1:
        raise TaskError("once more", retryable=True)
    return [child.id for child in children]


@task(retry=TWICE)
async def insists(job: JobContext) -> str:
    """Runs what has failed again in its next attempt."""
    (child,) = await job.wait(await job.submit(refuses))
    if job.attempt == 1:
        raise TaskError("once more", retryable=True)
    return f"{child.status} {child.attempt}"


@task
async def tree(job: JobContext, levels: int) -> str:
    """Children of children."""
    try:
        child = await job.submit("tree", {"levels": levels - 1}) if levels else await job.submit(hangs)
    except JobConflict as error:
        return error.detail
    (ended,) = await job.wait(child)
    return str(ended.result)


@task
async def forgets(job: JobContext) -> None:
    """Does not wait for what it asks."""
    job.submit(double, {"n": 1})


@task
async def counts(job: JobContext) -> None:
    """Says its own progress."""
    job.progress(1, 4, "mine")
    await job.submit(double, {"n": 1})
    await job.wait()


@task
async def speaks(job: JobContext) -> None:
    """Says what it does, and no numbers."""
    job.progress(message='"mine"')
    await asyncio.sleep(0.4)  # until it is written
    for n in range(2):
        await job.submit(double, {"n": n})
    await job.wait()


@task
async def impatient(job: JobContext) -> str:
    """Does not wait for ever."""
    await job.submit(hangs)
    try:
        await job.wait(timeout=0.05)
    except TimeoutError:
        return "over"
    return ""


@task
async def unheard(job: JobContext) -> None:
    """Asks for what there is not, and does not look."""
    job.submit("nobody")
