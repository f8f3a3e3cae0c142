"""Reading the record: one job, many jobs, pages of them. Nothing here writes but the sweep of what has expired."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import InvalidParameter
from jobstream.job import Record
from jobstream.scripts import Script

PAGE_MAX = 1_000
_SCANNED_AT_MOST = 10_000
"""Index entries one list request may look at; what is left is behind `next_cursor`."""

ABORT_MARK_MS = 3_600_000
"""Stock arq never removes an abort mark of an id that it does not know; we do after an hour."""

_sweep = Script("sweep")


class JobFilter(NamedTuple):
    """Which jobs a list shows; None lets everything through."""

    status: str | None = None
    task: str | None = None
    tag: str | None = None
    owner: str | None = None

    def admits(self, record: Record) -> bool:
        """True when the record matches every part that is set."""
        return (
            (self.status is None or record[b"status"] == self.status.encode())
            and (self.task is None or record.get(b"task") == self.task.encode())
            and (self.tag is None or self.tag.encode() in record.get(b"tags", b"").split())
            and is_visible(record.get(b"owner"), self.owner)
        )


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
    return record if b"status" in record else None


async def was_purged(client: Redis, job_id: str, *, owner: str | None = None) -> bool:
    """True within a day after the job was purged, for those who saw it: its `owner`, or None for everybody."""
    stored: bytes | None = await client.get(keys.tombstone(job_id))
    return stored is not None and (owner is None or stored == b"=" + owner.encode())


async def list_records(client: Redis, wanted: JobFilter, *, limit: int, cursor: str | None = None) -> Page:
    """One page of records, newest first. Raises InvalidParameter for a cursor that this function did not make."""
    limit = min(max(limit, 1), PAGE_MAX)
    index = keys.index(status=wanted.status, task=wanted.task, tag=wanted.tag, owner=wanted.owner)
    position = _decode_cursor(cursor) if cursor else None
    found: list[Record] = []
    scanned = 0
    while True:
        entries = await _entries_after(client, index, position, limit + 1 - len(found))
        if not entries:
            return Page(found, None)
        records = await _records(client, [job_id for job_id, _ in entries])
        for (job_id, score), record in zip(entries, records, strict=True):
            if len(found) == limit:
                assert position is not None
                return Page(found, _encode_cursor(position))
            position = (score, job_id)
            if b"status" in record and wanted.admits(record):
                found.append(record)
        scanned += len(entries)
        if scanned >= _SCANNED_AT_MOST and position is not None:
            return Page(found, _encode_cursor(position))


async def sweep(client: Redis, *, queues: Sequence[str], limit: int = 500) -> list[str]:
    """Take up to `limit` expired records out of the indexes; the ids that are gone (their files can go too)."""
    queue_keys = [keys.queue(name) for name in queues]
    gone: list[bytes] = await _sweep(client, args=[limit, ABORT_MARK_MS, *queue_keys])
    return [job_id.decode() for job_id in gone]


async def _entries_after(
    client: Redis, index: str, position: tuple[int, str] | None, count: int
) -> list[tuple[str, int]]:
    """Index entries behind `position`, by score and then id, both descending: the zset's own order."""
    if position is None:
        raw = await client.zrevrangebyscore(index, "+inf", "-inf", start=0, num=count, withscores=True)
        return [(member.decode(), int(score)) for member, score in raw]
    score_from, id_from = position
    skip = 0
    while True:
        raw = await client.zrevrangebyscore(index, score_from, "-inf", start=skip, num=count, withscores=True)
        entries = [(member.decode(), int(score)) for member, score in raw]
        fresh = [entry for entry in entries if (entry[1], entry[0]) < (score_from, id_from)]
        # Jobs of the same millisecond may fill a whole page with what was seen already: look past them.
        if fresh or len(entries) < count:
            return fresh
        skip += len(entries)


async def _records(client: Redis, job_ids: Sequence[str]) -> list[Record]:
    async with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(keys.record(job_id))
        records: list[Record] = await pipe.execute()
    return records


def _encode_cursor(position: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{position[0]}:{position[1]}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        score, separator, job_id = text.partition(":")
        if not separator or not job_id or not score.isdecimal() or len(score) > 15:
            raise ValueError
        return int(score), job_id
    except (binascii.Error, ValueError):
        raise InvalidParameter("The cursor is not one that a list has given") from None
