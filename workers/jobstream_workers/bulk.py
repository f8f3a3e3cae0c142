"""cancel-jobs and retry-jobs: the two tasks that every worker has, beside its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from jobstream import JobContext, RetryPolicy, Task, task
from jobstream.bulk import ATTEMPTS, CANCEL_JOBS, RETRY_JOBS, SCOPES, BulkFilter, BulkResult, CancelFilter, RetryFilter
from jobstream.errors import ConfigurationError, JobConflict, JobGone, JobNotFound
from jobstream.job import Job

AT_ONCE = 32
"""Jobs that are changed at the same time: Redis has others to serve."""

PAGE = 200
TIMEOUT = 6 * 3600.0
PASSES = 10
"""Jobs move on while they are looked for: what a pass has missed the next one finds."""

AGAIN = RetryPolicy(attempts=ATTEMPTS, backoff=2.0)

LIVE = ("scheduled", "retrying", "queued", "running")
"""Those that wait first, so that none of them begins when the slot of one that runs is freed."""


@task(name=CANCEL_JOBS, timeout=TIMEOUT, retry=AGAIN)
async def cancel_jobs(job: JobContext, wanted: CancelFilter) -> BulkResult:
    """Cancel all jobs that match and were there before this one."""
    tally = Tally(job)

    async def cancel(found: Job) -> bool:
        return not (await job.queue.cancel(found.id, only=wanted.status)).was_done

    for _ in range(PASSES):
        before = tally.changed
        for status in (wanted.status,) if wanted.status else LIVE:
            await tally.each(status, wanted, cancel)
        if tally.changed == before:
            break
    return tally.result()


@task(name=RETRY_JOBS, timeout=TIMEOUT, retry=AGAIN)
async def retry_jobs(job: JobContext, wanted: RetryFilter) -> BulkResult:
    """Run all failed (or cancelled) jobs again that match and had ended before this one was there."""
    tally = Tally(job)
    this = await job.queue.get(job.id)

    async def retry(found: Job) -> bool:
        if found.task in SCOPES:  # it was somebody's order to change others, which is not given again by a filter
            return False
        await job.queue.retry(found.id, ended_before=this)
        return True

    await tally.each(wanted.status or "failed", wanted, retry)
    return tally.result()


class Tally:
    """Walks through the jobs that match, changes them, and counts."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self.changed = self.skipped = 0

    async def each(self, status: str, wanted: BulkFilter, change: Callable[[Job], Awaitable[bool]]) -> None:
        """Change every job that matches, in this state, and was there when our own was submitted."""
        cursor, this = None, await self._job.queue.get(self._job.id)
        while True:
            found, cursor = await self._job.queue.list(
                status=status, task=wanted.task, tag=wanted.tag, q=wanted.q, limit=PAGE, cursor=cursor, up_to=this
            )
            others = [each for each in found if each.id != this.id]
            for start in range(0, len(others), AT_ONCE):
                await self._change(others[start : start + AT_ONCE], change)
            if cursor is None:
                return

    async def _change(self, jobs: list[Job], change: Callable[[Job], Awaitable[bool]]) -> None:
        async def one(found: Job) -> bool:
            try:
                return await change(found)
            except (JobConflict, JobGone, JobNotFound):  # it has moved on
                return False

        async with asyncio.TaskGroup() as group:
            changes = [group.create_task(one(found)) for found in jobs]
        changed = sum(each.result() for each in changes)
        self.changed += changed
        self.skipped += len(jobs) - changed
        self._job.progress(self.changed + self.skipped, message=f"{self.changed:,} changed")

    def result(self) -> BulkResult:
        """All that was counted."""
        return BulkResult(matched=self.changed + self.skipped, changed=self.changed, skipped=self.skipped)


def with_bulk_tasks(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """A worker's tasks, and ours. Raises ConfigurationError when one has the name of ours."""
    for ours in (cancel_jobs, retry_jobs):
        if ours.name in tasks:
            raise ConfigurationError(f"every worker has a task {ours.name!r} of its own; choose another name")
    return {**tasks, **{ours.name: ours for ours in (cancel_jobs, retry_jobs)}}
