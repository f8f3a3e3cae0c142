"""The backlog: how much waits in which queue, and for how long; in one round trip, whatever there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream.job import JobStatus
from jobstream.scripts import Script

_backlog = Script("backlog")


class QueueBacklog(NamedTuple):
    """What waits in one queue."""

    waiting: int
    """Jobs that are due, and that a free slot could run."""
    running: int
    """Jobs that run."""
    depth: int
    """All jobs of the queue: waiting, running, scheduled, between two attempts, held back."""
    oldest: float
    """Seconds since the job that has waited longest was due; 0 when none waits."""
    lacking: int
    """Jobs whose task no worker has that looked at them."""

    @property
    def due(self) -> int:
        """Jobs that want a slot, or have one: what the number of workers should follow."""
        return self.waiting + self.running


class Backlog(NamedTuple):
    """What waits in all of them."""

    queues: dict[str, QueueBacklog]
    statuses: dict[JobStatus, int]
    """Records by status."""
    workers: int
    """Workers whose heart beats."""
    mailbag: int
    """Ended jobs of which somebody is still to be told."""


async def read_backlog(client: Redis, queues: Iterable[str]) -> Backlog:
    """The backlog of these queues and of those that workers serve, 100 at most. Raises redis-py's errors.

    Beyond a thousand running jobs, or two hundred owners whose jobs wait for their turns, the numbers of a queue are
    estimates.
    """
    _, workers, mailbag, *rest = await _backlog(client, args=list(queues))
    counts, found = rest[: len(JobStatus)], rest[len(JobStatus) :]
    return Backlog(
        queues={
            name.decode(): QueueBacklog(int(waiting), int(running), depth, max(0, int(oldest)) / 1000, lacking)
            for name, waiting, running, depth, oldest, lacking in found
        },
        statuses=dict(zip(JobStatus, counts, strict=True)),
        workers=workers,
        mailbag=mailbag,
    )
