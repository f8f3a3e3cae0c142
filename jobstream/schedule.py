"""Schedule: a job that is handed in again and again, as the wire shows it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobstream.job import JobStatus, WireTime

SCHEDULE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,49}\Z")
"""The name of one that a client makes. That of a task's own is `task:` and the task."""

OF_TASK = "task:"
CRON_TAG = "cron"
"""Of the jobs of a task's own schedule."""

ScheduleState = Literal["active", "paused", "task-missing"]


class ScheduleRun(BaseModel):
    """The last job of a schedule."""

    job: str
    at: WireTime = Field(description="The tick, or when somebody asked for the run")
    status: JobStatus | None = Field(description="null: its record is not kept any more")


class ScheduleLinks(BaseModel):
    """The schedule itself, its jobs, and its next ticks."""

    self: str
    jobs: str
    next: str


class Schedule(BaseModel):
    """A task, an input and a cron. Times of a cron are local times of its zone."""

    name: str
    origin: Literal["api", "code"] = Field(description="`code`: declared with the task by `@task(cron=…)`")
    task: str
    input: dict[str, Any]
    cron: str = Field(description="Minute, hour, day of the month, month, day of the week")
    timezone: str = Field(description="IANA name")
    state: ScheduleState = Field(description="`task-missing`: no worker that is alive has the task")
    next_at: WireTime | None = Field(description="null: paused, or nobody announces the task any more")
    last: ScheduleRun | None
    queue: str | None = Field(description="null: the task's")
    priority: int
    tags: list[str]
    timeout: float | None = Field(description="Seconds; null: the task's")
    ttl: float | None = Field(description="Seconds; null: the task's")
    callback_url: str | None
    owner: str | None
    version: int = Field(description="Counts changes of the definition; the `ETag`")
    created_at: WireTime | None
    links: ScheduleLinks


def tag_of(name: str) -> str:
    """The tag of all jobs of a schedule that a client has made."""
    return f"schedule:{name}"
