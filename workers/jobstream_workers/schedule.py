"""The schedule: every worker sees to it that the next tick of each task with a cron waits in its queue, once.

Why a tick runs exactly once, however many workers there are:

- Its job has an id made of task and time, and it is stored by one script (cron.lua) together with the task's marker,
  which says which tick was queued last. So there is no moment between the two in which a worker could die, and of many
  workers the first one stores it. The marker outlives the job: a tick whose record has expired, was cancelled or purged
  is not queued again, and one that lies before the marker is not either, should Redis's clock step back.
- Only a tick that is still ahead by Redis's clock is queued, and only one at a time. What is sent while Redis is frozen
  arrives too late and is refused: after an outage the one tick that waited already runs late, then comes the next.
- When the marker is lost, Redis has lost the job with it, or both are older than two days.

A clock that stood more than a day ahead is taken for wrong: the tick that was queued then is withdrawn, and the
schedule begins anew. When a task's cron changes, or goes, the tick of the old one is withdrawn by the workers that know
the new one. While both kinds run side by side the workers that began last speak for the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import CancelledByClient
from jobstream.limits import NO_SUBMIT_LIMITS
from jobstream.problem import job_problem
from jobstream.queue import LIVE_SECONDS, arq_payload
from jobstream.scripts import Argument, Script
from jobstream.task import Task

LOOK_SECONDS = 5.0
"""Time between two looks at most: for what was lost, and for a clock that was set."""

AFTER_TICK_SECONDS = 0.02
"""A tick's successor is queued so soon after it."""

HORIZON = timedelta(days=365)
"""A tick that is farther away is not queued yet."""

TAG = "cron"

UNLIMITED = NO_SUBMIT_LIMITS.encode()
_cron = Script("cron", uses=["turns", "admit", "store", "submit"])

_WITHDRAWN = msgspec.json.encode(job_problem(CancelledByClient("the task's schedule has changed"), attempt=0))

Clock = Callable[[], Awaitable[datetime]]


def tick_id(task: str, tick: datetime) -> str:
    """The id of the job of a tick: `cron-<task>-<unix seconds>`."""
    return f"{TAG}-{task}-{tick.timestamp():.0f}"


class Schedule:
    """Queues the ticks of the tasks with a cron. `clock` tells Redis's time; tests turn it."""

    def __init__(self, client: Redis, tasks: Iterable[Task], *, clock: Clock | None = None) -> None:
        self._client = client
        self._tasks = list(tasks)
        self._clock = clock or self._redis_time
        self._since: datetime | None = None

    async def run(self) -> None:
        """Look again and again. Raises what Redis raises."""
        while True:
            pause = await self.look()
            await asyncio.sleep(pause)

    async def look(self) -> float:
        """Queue every task's next tick, if nobody has; gives the seconds until the next look is due."""
        now = await self._clock()
        self._since = self._since or now
        pause = LOOK_SECONDS
        for task in self._tasks:
            tick = task.cron.next_tick(now) if task.cron is not None else None
            await self._see_to(task, tick, now=now, since=self._since)
            if tick is not None:
                pause = min(pause, (tick - now).total_seconds() + AFTER_TICK_SECONDS)
        return max(pause, AFTER_TICK_SECONDS)

    async def _see_to(self, task: Task, tick: datetime | None, *, now: datetime, since: datetime) -> None:
        key_names: list[str] = []
        submit: list[Argument] = ["", "", task.name]
        cron = ""
        if tick is not None and task.cron is not None:
            if tick - now > HORIZON:
                return
            key_names = [keys.queue(task.queue)]
            submit = _submit_arguments(task, tick)
            cron = f"{task.cron.expression} {task.cron.timezone}"
        await _cron(
            self._client,
            key_names=key_names,
            args=[*submit, 0 if tick is None else _ms(tick), cron, _ms(since), _WITHDRAWN],
        )

    async def _redis_time(self) -> datetime:
        seconds, microseconds = await self._client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def _submit_arguments(task: Task, tick: datetime) -> list[Argument]:
    """For submit.lua: no delay but a time, no deadline, no idempotency key, no limits."""
    fields: list[Argument] = ["max_attempts", task.retry.attempts, "ttl", round(task.ttl * 1000)]
    payload = arq_payload(task.name, {})
    live = round(LIVE_SECONDS * 1000)
    return [
        tick_id(task.name, tick),
        task.queue,
        task.name,
        payload,
        0,
        _ms(tick),
        live,
        TAG,
        0,
        "",
        "",
        UNLIMITED,
        *fields,
    ]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
