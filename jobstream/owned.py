"""OwnedQueue: the queue as a running job may use it: bound to the job's owner."""

from __future__ import annotations

from jobstream.errors import JobGone
from jobstream.job import Job
from jobstream.queue import Outcome, Queue
from jobstream.search import parse_query
from jobstream.store import JobFilter, cursor_at, read_record


class OwnedQueue:
    """What `JobContext.queue` is. A job of a tenant sees and touches that tenant's jobs; one of nobody those of all.

    Jobs of others are answered for as if there were none. Errors of Redis pass through: the attempt fails.
    """

    def __init__(self, queue: Queue, job_id: str) -> None:
        self._queue = queue
        self._job_id = job_id
        self._owner: tuple[str | None] | None = None

    async def get(self, job_id: str) -> Job:
        """The job. Raises JobNotFound, or JobGone within a day after it was purged."""
        return await self._queue.get(job_id, owner=await self._own())

    async def list(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        up_to: Job | None = None,
    ) -> tuple[list[Job], str | None]:
        """A page of jobs, newest first, and the cursor of the next one (None: there is none).

        `up_to`: no job that was submitted later than this one; the millisecond counts. Raises InvalidParameter for a
        cursor or a `q` that is none.
        """
        wanted = JobFilter(
            status=status, task=task, tag=tag, owner=await self._own(), words=parse_query(q) if q is not None else ()
        )
        if cursor is None and up_to is not None:
            cursor = cursor_at(up_to)
        return await self._queue.list(wanted, limit=limit, cursor=cursor)

    async def cancel(self, job_id: str, *, only: str | None = None) -> Outcome:
        """Stop the job; its record stays. Raises JobNotFound, JobGone, and JobConflict if it is not in the state
        `only`."""
        return await self._queue.cancel(job_id, owner=await self._own(), only=only)

    async def retry(self, job_id: str, *, ended_before: Job | None = None) -> Job:
        """Run a failed or cancelled job again. Raises JobNotFound, JobGone, JobConflict: also for one that ended
        after the job `ended_before` was submitted."""
        return await self._queue.retry(
            job_id, owner=await self._own(), ended_before=ended_before.created_at if ended_before else None
        )

    async def _own(self) -> str | None:
        """Read once: an id is never given to another owner's job."""
        if self._owner is None:
            record = await read_record(self._queue.client, self._job_id)
            if record is None:
                raise JobGone(f"Job {self._job_id} has lost its record")
            owner = record.get(b"owner")
            self._owner = (owner.decode() if owner is not None else None,)
        return self._owner[0]
