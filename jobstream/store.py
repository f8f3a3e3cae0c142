"""Reading the record: one job, many jobs, pages of them. Nothing here writes but the sweep of what has expired."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import InvalidParameter
from jobstream.job import FINAL, Job, JobStatus, Record, pairs
from jobstream.scripts import Script

PAGE_MAX = 1_000
_ENTRIES_PER_CALL = 2_000
"""Index entries that one call of the script looks at: Redis does nothing else meanwhile."""
_CALLS_AT_MOST = 5
"""What is left after that is behind `next_cursor`, of a page that may be short or empty."""

ABORT_MARK_MS = 3_600_000
"""Stock arq never removes an abort mark of an id that it does not know; we do after an hour."""

_list = Script("list")
_sweep = Script("sweep", uses=["turns", "after"])


class JobFilter(NamedTuple):
    """Which jobs a list shows; None lets everything through."""

    status: str | None = None
    task: str | None = None
    tag: str | None = None
    owner: str | None = None
    words: tuple[str, ...] = ()
    """All of which its input or tags say; made by `jobstream.search.parse_query`."""


def is_visible(stored: bytes | None, owner: str | None) -> bool:
    """True when who asks for `owner` may see a job whose record says `stored`. None asks for the jobs of all."""
    return owner is None or stored == owner.encode()


class Page(NamedTuple):
    """Records, newest first, and where the next page begins (None: there is none)."""

    records: list[Record]
    next_cursor: str | None


async def read_record(client: Redis, job_id: str) -> Record | None:
    """The job's record, or None: also for a hash of single fields, which a write after the record's expiry leaves."""
    record = await cast("Awaitable[Record]", client.hgetall(keys.record(job_id)))
    return record if is_job(record) else None


def is_job(record: Record) -> bool:
    """False for the record of a batch, which is no job's, and for what is left of one that has expired."""
    return b"status" in record and b"jobs" not in record


async def read_records(client: Redis, job_ids: Sequence[str]) -> list[Record]:
    """The records in one round trip. One without a status is none: the job is gone."""
    async with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(keys.record(job_id))
        records: list[Record] = await pipe.execute()
    return records


async def was_purged(client: Redis, job_id: str, *, owner: str | None = None) -> bool:
    """True within a day after the job was purged, for those who saw it: its `owner`, or None for everybody."""
    stored: bytes | None = await client.get(keys.tombstone(job_id))
    return stored is not None and (owner is None or stored == b"=" + owner.encode())


async def list_records(client: Redis, wanted: JobFilter, *, limit: int, cursor: str | None = None) -> Page:
    """One page of records, newest first. Raises InvalidParameter for a cursor that this function did not make."""
    limit = min(max(limit, 1), PAGE_MAX)
    created, job_id = _decode_cursor(cursor) if cursor else ("", "")
    found: list[Record] = []
    for _ in range(_CALLS_AT_MOST):
        behind, created_at, last_id, *records = await _list(
            client,
            args=[
                created,
                job_id,
                limit - len(found),
                _ENTRIES_PER_CALL,
                wanted.status or "",
                wanted.task or "",
                wanted.tag or "",
                wanted.owner or "",
                *wanted.words,
            ],
        )
        created, job_id = created_at.decode(), last_id.decode()
        found += map(pairs, records)
        if behind != b"unknown":
            break
    return Page(found, None if behind == b"end" else _encode_cursor(created, job_id))


async def unfinished_ids(client: Redis, wanted: JobFilter, *, most: int) -> tuple[list[str], bool]:
    """Ids of up to `most` jobs that may match and may not be done, newest first, and whether these are all.

    The indexes are read at one moment, so a job that changes its status meanwhile is in there. Whoever reads the
    records decides whether they match.
    """
    statuses = [status for status in JobStatus if status not in FINAL and wanted.status in (None, status)]
    if not statuses:
        return [], True
    if wanted.owner is not None:  # no index of others' jobs is walked: how long that takes would tell of them
        indexes = [keys.owned(status, wanted.owner) for status in statuses]
    else:
        indexes = await _smaller(client, keys.index(task=wanted.task, tag=wanted.tag), statuses)
    async with client.pipeline(transaction=True) as pipe:
        for index in indexes:
            pipe.zrevrange(index, 0, most, withscores=True)
        found: list[list[tuple[bytes, float]]] = await pipe.execute()
    entries = sorted(((score, job_id) for entries in found for job_id, score in entries), reverse=True)
    return [job_id.decode() for _, job_id in entries[:most]], len(entries) <= most


async def _smaller(client: Redis, narrow: str, statuses: Sequence[JobStatus]) -> list[str]:
    """The indexes of these statuses, or the narrow one if that is smaller than they are together."""
    indexes = [keys.index(status=status) for status in statuses]
    if narrow == keys.INDEX:
        return indexes
    async with client.pipeline(transaction=False) as pipe:
        for index in (narrow, *indexes):
            pipe.zcard(index)
        narrow_size, *sizes = await pipe.execute()
    return [narrow] if narrow_size < sum(sizes) else indexes


async def sweep(client: Redis, *, queues: Sequence[str], limit: int = 500) -> list[str]:
    """Take up to `limit` expired records out of the indexes; the ids that are gone (their files can go too)."""
    queue_keys = [keys.queue(name) for name in queues]
    gone: list[bytes] = await _sweep(client, args=[limit, ABORT_MARK_MS, *queue_keys])
    return [job_id.decode() for job_id in gone]


def cursor_at(job: Job) -> str:
    """The cursor of a page that begins with the jobs of the job's millisecond: what came later is not in it."""
    return _encode_cursor(str(round(job.created_at.timestamp() * 1000)), "~")  # behind every id


def _encode_cursor(created: str, job_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created}:{job_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created, separator, job_id = text.partition(":")
        if not separator or not job_id or not created.isdecimal() or len(created) > 15:
            raise ValueError
        return created, job_id
    except (binascii.Error, ValueError):
        raise InvalidParameter("The cursor is not one that a list has given") from None
