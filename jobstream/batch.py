"""Batch: the jobs of one submit, counted together; as its record says it, and the wire."""

from __future__ import annotations

from pydantic import BaseModel, Field

from jobstream.job import JobProgress, JobStatus, Record, WireTime, from_ms, job_ids


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


def batch_job_ids(record: Record) -> list[str]:
    """The ids of its jobs: they follow its own."""
    return job_ids(record[b"id"].decode(), int(record[b"jobs"]) + 1)[1:]
