"""Batches in Redis: read, list and cancel them. Their records are kept by the scripts that move their jobs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.batch import batch_job_ids, is_batch
from jobstream.errors import BatchNotFound, InvalidParameter
from jobstream.job import Job, Record, job_from_record, pairs
from jobstream.queue import CANCELLED
from jobstream.scripts import Script
from jobstream.store import is_job, is_visible, read_records

CANCELLED_AT_ONCE = 250
"""Jobs that one script stops: Redis serves nobody else meanwhile."""

PAGE_MAX = 1_000

_cancel = Script("cancel_batch", uses=["turns", "after", "stop"])


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
    ids = await _job_ids(client, record)
    verdict = b""
    for start in range(0, len(ids), CANCELLED_AT_ONCE):
        answer = await _cancel(client, args=[batch_id, CANCELLED, *ids[start : start + CANCELLED_AT_ONCE]])
        if not answer:
            raise BatchNotFound(f"There is no batch {batch_id[:64]!r}")
        if answer[0] == b"done":
            return pairs(answer[1]), not verdict
        verdict, record = answer[0], pairs(answer[1])
    return record, False


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
    ids: Sequence[str] = await _job_ids(client, record)
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


async def _job_ids(client: Redis, record: Record) -> list[str]:
    """In the order in which they are listed."""
    if b"of" not in record:
        return batch_job_ids(record)
    found: Any = await cast("Awaitable[Any]", client.lrange(keys.CHILDREN + record[b"id"].decode(), 0, -1))
    return sorted(job_id.decode() for job_id in found)


async def _in_status(client: Redis, record: Record, status: str) -> list[str]:
    """The jobs of a batch are created in one millisecond: there they stand in the index of their status, by id."""
    ids, at = await _job_ids(client, record), int(record[b"created_at"])
    if b"of" in record:
        records = await read_records(client, ids)
        return [job_id for job_id, found in zip(ids, records, strict=True) if found.get(b"status") == status.encode()]
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
