"""Job: what a record says, as the wire shows it; JobStatus and which statuses are final."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from jobstream.problem import placed

DEFAULT_QUEUE = "default"
WEBHOOKS_QUEUE = "webhooks"
"""Deliveries wait there; every worker serves it, with slots of their own."""
RESERVED_QUEUES = frozenset({WEBHOOKS_QUEUE, "health-check"})
"""No job of others can be put there; the second one would be taken for a key of arq's."""
DEFAULT_TTL = 86_400.0
"""Seconds a finished job's record is kept, unless the task or the request says otherwise."""
QUEUE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")


class JobStatus(StrEnum):
    """The states of a job; `docs/states.md` draws them."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def done(self) -> bool:
        """True for the three final states."""
        return self in FINAL


FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]


def new_job_id(*, now_ms: int | None = None, entropy: int | None = None) -> str:
    """A ULID (github.com/ulid/spec): 48 bits of milliseconds and 80 random ones, 26 characters that sort by time."""
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = milliseconds << 80 | (secrets.randbits(80) if entropy is None else entropy)
    return _ulid(value)


def job_ids(first: str, count: int) -> list[str]:
    """The first id and those that follow it, as the monotonic ULIDs of one millisecond do: they sort in this order."""
    value = 0
    for character in first:
        value = value << 5 | _CROCKFORD.index(character)
    return [_ulid(value + number) for number in range(count)]


def child_id(parent: str, key: str) -> str:
    """The id of a job's child, or of the batch of them: the same for the same key, in every attempt of the parent."""
    digest = hashlib.sha256(f"{parent}\n{key}".encode()).digest()
    return _ulid(int.from_bytes(digest[:16], "big"))


def _ulid(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -10, -10)])


def wire_time(value: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-21T06:40:00.000Z`."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


WireTime = Annotated[datetime, PlainSerializer(wire_time, return_type=str, when_used="json")]


class JobProgress(BaseModel):
    """How far a job has come."""

    current: float | int | None = None
    total: float | int | None = None
    percent: float | None = Field(None, description="0 to 100")
    message: str | None = None
    eta_s: float | None = Field(None, description="Seconds left, estimated")
    items: list[str] = Field(default_factory=list, description="Names of what has been processed")


class JobError(BaseModel):
    """Why a job failed: a problem object (RFC 9457) with the attempt it happened in."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    attempt: int


class JobLinks(BaseModel):
    """The three faces of the job."""

    self: str
    result: str
    events: str


class Job(BaseModel):
    """One requested run of a task."""

    id: str
    task: str
    queue: str
    status: JobStatus
    done: bool
    version: int
    progress: JobProgress | None
    attempt: int
    max_attempts: int
    result: Any
    error: JobError | None
    errors: list[JobError] = Field(default_factory=list, description="What ended each failed attempt")
    created_at: WireTime
    run_at: WireTime | None
    started_at: WireTime | None
    finished_at: WireTime | None
    expires_at: WireTime | None
    worker: str | None
    tags: list[str]
    owner: str | None
    parent: str | None
    after: list[str] = Field(
        default_factory=list, description="Jobs and batches that must have succeeded before it runs"
    )
    children: str | None = Field(None, description="The batch of the jobs that it has submitted itself")
    batch: str | None = Field(None, description="The batch that it was submitted with")
    links: JobLinks


Record = Mapping[bytes, bytes]


def job_from_record(record: Record, *, prefix: str = "") -> Job:
    """Read a record's hash. `prefix` goes before the links' paths. Raises KeyError for a hash that is no record."""
    job_id = record[b"id"].decode()
    task = record.get(b"task", b"").decode() or "unknown"
    status = JobStatus(record[b"status"].decode())
    return Job(
        id=job_id,
        task=task,
        queue=record[b"queue"].decode(),
        status=status,
        done=status.done,
        version=int(record[b"version"]),
        progress=_progress(record.get(b"progress")),
        attempt=int(record.get(b"attempt", 0)),
        max_attempts=int(record.get(b"max_attempts", 1)),
        result=_json(record.get(b"result")),
        error=_error(_json(record.get(b"error")), prefix),
        errors=[_error(error, prefix) for error in _json(b"[" + record.get(b"errors", b"") + b"]")],
        created_at=from_ms(record[b"created_at"]),
        run_at=_time(record.get(b"run_at")),
        started_at=_time(record.get(b"started_at")),
        finished_at=_time(record.get(b"finished_at")),
        expires_at=_time(record.get(b"expires_at")),
        worker=_text(record.get(b"worker")),
        tags=record.get(b"tags", b"").decode().split(),
        owner=_text(record.get(b"owner")),
        parent=_text(record.get(b"parent")),
        after=record.get(b"after", b"").decode().split(),
        children=_text(record.get(b"children")),
        batch=_text(record.get(b"batch")),
        links=job_links(job_id, task, prefix=prefix),
    )


def job_links(job_id: str, task: str, *, prefix: str = "") -> JobLinks:
    """The paths of a job's three faces."""
    return JobLinks(
        self=f"{prefix}/jobs/{job_id}",
        result=f"{prefix}/{task}/{job_id}",
        events=f"{prefix}/jobs/{job_id}/events",
    )


def pairs(flat: Sequence[bytes]) -> Record:
    """A script's HGETALL (name, value, name, value, …) as a record."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def from_ms(value: bytes | int) -> datetime:
    """Milliseconds since the epoch, as stored, to an aware datetime."""
    return datetime.fromtimestamp(int(value) / 1000, UTC)


def _error(members: dict[str, Any] | None, prefix: str) -> Any:
    return members and placed(members, prefix)


def _progress(data: bytes | None) -> JobProgress | None:
    return JobProgress.model_validate_json(data) if data else None


def _json(data: bytes | None) -> Any:
    return msgspec.json.decode(data) if data else None


def _time(data: bytes | None) -> datetime | None:
    return from_ms(data) if data else None


def _text(data: bytes | None) -> str | None:
    return data.decode() if data else None
