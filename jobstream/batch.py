"""Batch: the jobs of one submit, counted together; its record is kept by the scripts that move its jobs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, Field
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import BatchNotFound, InvalidParameter
from jobstream.job import Job, JobProgress, JobStatus, Record, WireTime, from_ms, job_from_record, job_ids, pairs
from jobstream.queue import CANCELLED
from jobstream.scripts import Script
from jobstream.store import is_job, is_visible, read_records

CANCELLED_AT_ONCE = 250
"""Jobs that one script stops: Redis serves nobody else meanwhile."""

PAGE_MAX = 1_000

_cancel = Script("cancel_batch", uses=["turns", "stop"])


class BatchCounts(BaseModel):
    """How many of its jobs are in which state."""

    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    cancelling: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class BatchProgress(JobProgress):
    """How far a batch has come: `current` of its jobs have ended, of `total`."""

    counts: BatchCounts


class BatchLinks(BaseModel):
    """What there is of a batch."""

    self: str
    events: str
    jobs: str


class Batch(BaseModel):
    """Jobs that were submitted together, as one."""

    id: str
    status: JobStatus = Field(
        description="`queued` until one of its jobs runs, then `running`. In the end `succeeded` when all have, "
        "`failed` when one has, else `cancelled`. Never `scheduled` nor `retrying`"
    )
    done: bool
    version: int
    progress: BatchProgress
    created_at: WireTime
    finished_at: WireTime | None
    expires_at: WireTime | None
    owner: str | None
    links: BatchLinks


def is_batch(record: Record) -> bool:
    """True for a batch's record: they are among those of jobs, so that they can be followed like one."""
    return b"jobs" in record and b"status" in record


def batch_from_record(record: Record, *, prefix: str = "") -> Batch:
    """Read a record's hash. `prefix` goes before the links' paths."""
    status = JobStatus(record[b"status"].decode())
    batch_id = record[b"id"].decode()
    finished, expires, owner = (record.get(name) for name in (b"finished_at", b"expires_at", b"owner"))
    return Batch(
        id=batch_id,
        status=status,
        done=status.done,
        version=int(record[b"version"]),
        progress=batch_progress(record),
        created_at=from_ms(record[b"created_at"]),
        finished_at=from_ms(finished) if finished else None,
        expires_at=from_ms(expires) if expires else None,
        owner=owner.decode() if owner is not None else None,
        links=batch_links(batch_id, prefix=prefix),
    )


def batch_progress(record: Record) -> BatchProgress:
    """What the counts of its record say."""
    counts = BatchCounts(**{name: int(record.get(f"n_{name}".encode(), 0)) for name in BatchCounts.model_fields})
    ended, total = counts.succeeded + counts.failed + counts.cancelled, int(record[b"jobs"])
    percent = ended * 1000 // total / 10
    return BatchProgress(current=ended, total=total, percent=percent, message=None, eta_s=None, counts=counts)


def batch_links(batch_id: str, *, prefix: str = "") -> BatchLinks:
    """Its paths."""
    path = f"{prefix}/batches/{batch_id}"
    return BatchLinks(self=path, events=f"{path}/events", jobs=f"{path}/jobs")


async def read_batch(client: Redis, batch_id: str) -> Record | None:
    """The batch's record, or None."""
    record = await cast("Awaitable[Record]", client.hgetall(keys.record(batch_id)))
    return record if is_batch(record) else None


async def find_batch(client: Redis, batch_id: str, *, owner: str | None = None) -> Record:
    """The same. Raises BatchNotFound, also for one that is not the owner's (None: anybody's will do)."""
    record = await read_batch(client, batch_id)
    if record is None or not is_visible(record.get(b"owner"), owner):
        raise BatchNotFound(f"There is no batch {batch_id[:64]!r}")
    return record


async def cancel_batch(client: Redis, batch_id: str, *, owner: str | None = None) -> tuple[Record, bool]:
    """Stop all its jobs; the record as it is then, and whether the batch had ended before.

    From the first call of the script on none of its jobs begins any more, whatever becomes of us. Raises BatchNotFound.
    """
    record = await find_batch(client, batch_id, owner=owner)
    ids = batch_job_ids(record)
    verdict = b""
    for start in range(0, len(ids), CANCELLED_AT_ONCE):
        answer = await _cancel(client, args=[batch_id, CANCELLED, *ids[start : start + CANCELLED_AT_ONCE]])
        if not answer:
            raise BatchNotFound(f"There is no batch {batch_id[:64]!r}")
        if answer[0] == b"done":
            return pairs(answer[1]), not verdict
        verdict, record = answer[0], pairs(answer[1])
    return record, False


def batch_job_ids(record: Record) -> list[str]:
    """The ids of its jobs: they follow its own."""
    return job_ids(record[b"id"].decode(), int(record[b"jobs"]) + 1)[1:]


class BatchPage(NamedTuple):
    """Jobs of a batch, in its order, and where the next page begins (None: there is none)."""

    jobs: list[Job]
    next_cursor: str | None


async def list_batch(
    client: Redis,
    record: Record,
    *,
    status: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    prefix: str = "",
) -> BatchPage:
    """A page of its jobs; those that were purged, or have expired, are left out.

    Raises InvalidParameter for a cursor that this function did not make.
    """
    limit = min(max(limit, 1), PAGE_MAX)
    ids: Sequence[str] = batch_job_ids(record)
    if status is not None:
        ids = await _in_status(client, record, status)
    after = _decode(cursor) if cursor else ""
    ids = [job_id for job_id in ids if job_id > after]
    page = ids[:limit]
    jobs = [
        job_from_record(found, prefix=prefix)
        for found in await read_records(client, page)
        if is_job(found) and status in (None, found[b"status"].decode())
    ]
    return BatchPage(jobs, _encode(page[-1]) if len(ids) > limit else None)


async def _in_status(client: Redis, record: Record, status: str) -> list[str]:
    """The jobs of a batch are created in one millisecond: there they stand in the index of their status, by id."""
    ids, at = batch_job_ids(record), int(record[b"created_at"])
    found: Any = await client.zrangebyscore(keys.index(status=status), at, at)
    mine = set(ids)
    return sorted(text for job_id in found if (text := job_id.decode()) in mine)


def _encode(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    if len(text) != 26:
        raise InvalidParameter("The cursor is not one that a list has given")
    return text
