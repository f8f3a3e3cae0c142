"""The scheduler: every worker sees to it that the next tick of each schedule waits in its queue, once.

Each worker looks after the own schedules of its tasks, and after all that clients have made, whatever its tasks. Why a
tick runs exactly once is written in jobstream.schedules.

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

from jobstream.errors import CancelledByClient
from jobstream.problem import job_problem
from jobstream.queue import Submission, SubmitOptions
from jobstream.schedule import CRON_TAG
from jobstream.schedules import HORIZON, TickVerdict, cron_text, of_task, queue_next, queue_tick, take_due
from jobstream.search import WORDS_MAX
from jobstream.task import Task

LOOK_SECONDS = 5.0
"""Time between two looks at most: for what was lost, and for a clock that was set."""

AFTER_TICK_SECONDS = 0.02
"""A tick's successor is queued so soon after it."""

BEGIN_SECONDS = 0.25
"""A tick that has not begun yet holds up its successor, and is looked at again so soon."""

_WITHDRAWN = msgspec.json.encode(job_problem(CancelledByClient("the task's schedule has changed"), attempt=0))

Clock = Callable[[], Awaitable[datetime]]


def tick_id(task: str, tick: datetime) -> str:
    """The id of the job of a tick of a task's own: `cron-<task>-<unix seconds>`."""
    return f"{CRON_TAG}-{task}-{tick.timestamp():.0f}"


class Scheduler:
    """Queues ticks. `clock` tells Redis's time; tests turn it."""

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
        """Queue every next tick, if nobody has; gives the seconds until the next look is due."""
        now = await self._clock()
        self._since = self._since or now
        pause = LOOK_SECONDS
        for task in self._tasks:
            tick = task.cron.next_tick(now) if task.cron is not None else None
            if await self._see_to(task, tick, now=now, since=self._since) == "waits":
                pause = min(pause, BEGIN_SECONDS)
            if tick is not None:
                pause = min(pause, (tick - now).total_seconds() + AFTER_TICK_SECONDS)
        due, until = await take_due(self._client)
        for schedule in due:
            await queue_next(self._client, schedule, now=await self._clock())
        if until is not None:
            pause = min(pause, until)
        return max(pause, AFTER_TICK_SECONDS)

    async def _see_to(self, task: Task, tick: datetime | None, *, now: datetime, since: datetime) -> TickVerdict:
        wanted: Submission | None = None
        cron = ""
        if tick is not None and task.cron is not None:
            if tick - now > HORIZON:
                return "kept"
            options = SubmitOptions(run_at=tick, tags=(CRON_TAG,))
            wanted = Submission(
                task.name,
                {},
                options,
                task.queue,
                task.ttl,
                task.retry.attempts,
                job_id=tick_id(task.name, tick),
            )
            cron = cron_text(task.cron)
        return await queue_tick(
            self._client,
            of_task(task.name),
            wanted,
            tick,
            cron=cron,
            version="",
            since=_ms(since),
            words=WORDS_MAX,
            why=_WITHDRAWN,
        )

    async def _redis_time(self) -> datetime:
        seconds, microseconds = await self._client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
