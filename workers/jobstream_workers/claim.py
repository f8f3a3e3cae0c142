"""Claim: one call takes due jobs for all free slots, each with a lease and a token of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream import keys
from jobstream.queue import LIVE_SECONDS
from jobstream.scripts import Script

CLAIM_MAX = 50
"""Jobs per call: other workers want some too, and a script blocks Redis while it runs."""

NO_LIMITS: Mapping[str, int] = {}

WEEK_SECONDS = 604_800.0

_STALE = -2

_claim = Script("claim", uses=["turns", "headroom"])


class StaleClaim(Exception):
    """Redis has executed this claim before, or a later one of the same worker: it took nothing."""


class Numbers(NamedTuple):
    """Which claim of its worker this is, and the last one that the worker has heard an answer to.

    What a claim in between was given goes back, uncounted: nobody runs it.
    """

    this: int
    heard: int


NOT_NUMBERED = Numbers(0, 0)


class Suspects(NamedTuple):
    """Jobs that have `crashes` crashes behind them, and how many of those a claim may take."""

    crashes: int
    most: int


ANY_SUSPECTS = Suspects(1_000_000, 0)


class Room(NamedTuple):
    """What a worker has to deal out, and whom it has dealt slots to already.

    While several tenants have jobs for these queues, the last `kept` free slots are for tenants that have less than
    their share of `slots`, by weight.
    """

    free: int
    kept: int
    slots: int
    queues: str
    running: Mapping[str, int]
    """Tenant → how many of its jobs run in this worker."""

    def __str__(self) -> str:
        """As the script reads it."""
        running = "".join(f" {owner} {count}" for owner, count in self.running.items())
        return f"{self.free} {self.kept} {self.slots} {self.queues}{running}"


class ClaimedJob(NamedTuple):
    """An attempt that this worker may make. `token` fences every write of it."""

    id: str
    queue: str
    token: str
    attempt: int
    payload: bytes
    """arq's job payload; empty when it has expired."""
    timeout: float | None
    """Seconds, when the submit asked for another time than the task's."""
    stop: bool
    """The job was told to stop before it was claimed."""
    known: bool
    """False for a job that a stock arq client enqueued: its record is to be completed."""
    crashes: int
    """How many workers have died with this job."""
    spent: int
    """Attempts that were used up before the job was run again by a client."""
    taken_over: bool
    """Its last worker has died."""
    waited: float
    """Seconds since it was due."""
    owner: str | None


async def claim(
    client: Redis,
    *,
    queue: str,
    worker_id: str,
    slots: int,
    lease: float,
    limits: Mapping[str, int] = NO_LIMITS,
    numbers: Numbers = NOT_NUMBERED,
    tasks: str = "",
    missing: float = WEEK_SECONDS,
    suspects: Suspects = ANY_SUSPECTS,
    owner_running: int = 0,
    room: Room | None = None,
) -> tuple[list[ClaimedJob], float | None]:
    """Claim up to `slots` due jobs of a queue for `lease` seconds.

    `limits`: task → how many of its jobs may run at once. `tasks`: `task_list` of what the worker has (empty: all);
    jobs of others are left to other workers, unless they have waited for `missing` seconds and no such worker was heard
    of for as long. `owner_running`: how many jobs of an owner may run at once, unless something else was set for it; 0:
    any number. `room`: what is kept for tenants with few jobs; None: nothing. Without numbers, what a lost answer took
    is found when its lease has ended.

    Gives the jobs, and the seconds until the next entry of the queue is due (None: nothing waits for a time). Raises
    StaleClaim.
    """
    most = [part for limit in limits.items() for part in limit]
    answer = await _claim(
        client,
        hurry=True,
        key_names=[keys.queue(queue)],
        args=[
            queue,
            worker_id,
            min(slots, CLAIM_MAX),
            round(lease * 1000),
            round(LIVE_SECONDS * 1000),
            *numbers,
            tasks,
            round(missing * 1000),
            suspects.most,
            suspects.crashes,
            owner_running,
            "" if room is None else str(room),
            *most,
        ],
    )
    next_due_ms = int(answer[0])
    if next_due_ms == _STALE:
        raise StaleClaim
    jobs = [
        ClaimedJob(  # in its order: by name it would take as long again
            job_id.decode(),
            queue,
            token.decode(),
            attempt,
            payload,
            float(timeout) if timeout else None,
            stop == 1,
            known == 1,
            crashes,
            spent,
            taken_over == 1,
            waited_ms / 1000,
            owner.decode() or None,
        )
        for (
            job_id,
            token,
            attempt,
            payload,
            timeout,
            stop,
            known,
            crashes,
            spent,
            taken_over,
            waited_ms,
            owner,
        ) in answer[1:]
    ]
    return jobs, next_due_ms / 1000 if next_due_ms >= 0 else None


def task_list(tasks: Iterable[str]) -> str:
    """What `claim` takes as `tasks`."""
    return f" {' '.join(tasks)} "
