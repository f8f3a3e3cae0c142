"""Bulk cancel and retry: what the two built-in tasks take and give that every worker has, and who may submit them."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobstream.caller import Caller, Scope
from jobstream.errors import Forbidden

CANCEL_JOBS: Final = "cancel-jobs"
RETRY_JOBS: Final = "retry-jobs"

SCOPES: Final = {CANCEL_JOBS: Scope.CANCEL, RETRY_JOBS: Scope.SUBMIT}
"""What their callers need, by whatever way they are submitted or run again."""

ATTEMPTS: Final = 5
"""Redis may be away for a while."""

Live = Literal["scheduled", "queued", "retrying", "running"]
Retriable = Literal["failed", "cancelled"]


def check_scope(task: str, caller: Caller) -> None:
    """Raises Forbidden when the task needs a scope that the caller lacks."""
    scope = SCOPES.get(task)
    if scope is not None and not caller.may(scope):
        raise Forbidden(f"The caller lacks the scope {scope.value!r}, which task {task!r} needs", scope=scope.value)


def _some_filter(schema: dict[str, Any]) -> None:
    """The validator below, for who has only the schema: the API."""
    narrow = [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("status", "task", "tag", "q")]
    schema["anyOf"] = [*narrow, {"required": ["all"], "properties": {"all": {"const": True}}}]


class BulkFilter(BaseModel):
    """Which jobs: those that fit all of it, and were there before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_some_filter)

    status: str | None = None
    task: str | None = Field(None, description="Only jobs of this task")
    tag: str | None = Field(None, description="Only jobs with this tag")
    q: str | None = Field(None, description="Only jobs whose input or tags say all these words")
    all: bool = Field(default=False, description="Needed when nothing else narrows it down")

    @model_validator(mode="after")
    def _not_all_by_mistake(self) -> Self:
        if not (self.status or self.task or self.tag or self.q or self.all):
            raise ValueError("give a status, task, tag or q; for all jobs say all=true")
        return self


class CancelFilter(BulkFilter):
    """What `cancel-jobs` takes."""

    status: Live | None = Field(None, description="Only jobs in this state; else all that are not done")


class RetryFilter(BulkFilter):
    """What `retry-jobs` takes."""

    status: Retriable | None = Field(None, description="`failed` unless given")


class BulkResult(BaseModel):
    """What has been done, by the attempt that came to the end."""

    matched: int
    changed: int
    skipped: int = Field(description="Jobs that had moved on, or cannot be run again")
