"""A job's events: the bell (pub/sub message), the log (list) and the id by which a client resumes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from jobstream import keys
from jobstream.job import Record, pairs
from jobstream.scripts import Script

DURABLE = frozenset({"status", "log", "chunk", "done"})
"""Events that are in the log and carry an id. `progress` is state: the latest is in the record."""

_read = Script("read")
_epoch = Script("epoch")
_versions = Script("versions")

_EVENT_ID = re.compile(r"(?P<epoch>[0-9a-f]{8})-(?P<version>[0-9]{1,15})\Z")


class JobEvent(NamedTuple):
    """One change of a job. `data` is JSON, except of `done`, whose data is the status that the job ended with.

    The record of a job that is purged with its end is gone by then: it follows the status (`purged_record`).
    """

    version: int
    kind: str
    time_ms: int
    data: bytes

    @property
    def durable(self) -> bool:
        """True for what the log keeps."""
        return self.kind in DURABLE


class EventId(NamedTuple):
    """`<epoch>-<version>`: opaque to clients. The epoch changes when Redis's history forked."""

    epoch: str
    version: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.version}"


class Position(NamedTuple):
    """How far a job is."""

    status: str
    version: int


class Snapshot(NamedTuple):
    """The record and the log behind a version, read at one moment."""

    record: Record
    events: list[JobEvent]
    complete: bool
    """False when entries of the log between that version and `events` were trimmed."""
    more: bool
    """True when the log goes on behind `events`."""

    @property
    def version(self) -> int:
        """The record's version: that of the last event."""
        return int(self.record[b"version"])


def parse_event_id(text: str) -> EventId | None:
    """The id, or None for text that never was one of ours."""
    match = _EVENT_ID.match(text)
    return EventId(match["epoch"], int(match["version"])) if match else None


def parse_message(message: bytes) -> JobEvent:
    """A pub/sub message of `keys.events`, or an entry of the log: `<version> <kind> <ms> <data>`."""
    version, kind, time_ms, data = message.split(b" ", 3)
    return JobEvent(int(version), kind.decode(), int(time_ms), data)


async def read_position(client: Redis, job_id: str) -> Position | None:
    """The job's status and version; None when there is no record."""
    fields = cast("Awaitable[list[bytes | None]]", client.hmget(keys.record(job_id), ["status", "version"]))
    status, version = await fields
    return None if status is None or version is None else Position(status.decode(), int(version))


async def read_versions(client: Redis, job_ids: Sequence[str]) -> list[int | None]:
    """The versions of many jobs in one round trip; None for those that have no record."""
    versions: list[bytes | None] = await _versions(client, args=job_ids)
    return [None if version is None else int(version) for version in versions]


async def read_snapshot(client: Redis, job_id: str, *, after: int, limit: int | None = None) -> Snapshot | None:
    """The record and up to `limit` (None: all) durable events above version `after`; None when there is no record."""
    flat, entries, first = await _read(client, args=[job_id, after, limit or 0])
    record = pairs(flat)
    if b"status" not in record:
        return None
    events = [parse_message(entry) for entry in entries]
    oldest = parse_message(first).version if first else None
    # Version 1 is always durable (the submit), so a log that begins later has lost its beginning.
    complete = after >= int(record[b"version"]) or (oldest is not None and (oldest == 1 or oldest <= after + 1))
    return Snapshot(record, events, complete, more=len(events) == limit)


async def read_epoch(client: Redis, *, other_than: str | None = None) -> str:
    """The name of this history of the data; made by whoever asks first. It changes when history may have forked.

    The key keeps the replication id with the name (Redis documentation, "Replication": replication ID explained). The
    same id: nothing has happened. Another one whose `master_replid2` is set: a replica was promoted. Another one of a
    server without an append-only file: it was started from a dump. In both cases writes may be lost, so history gets a
    new name. Else the server was started on its append-only file, which has all that was answered (or of which a job's
    record shows that it has not: then the caller says `other_than` this name). A server that tells nothing of
    replication keeps its name. (One that was a replica once may change it at a restart without need: its file has the
    id of then. That costs its watchers a snapshot.)

    Raises redis-py's errors, ReadOnlyError for a replica: what it says is of yesterday.
    """
    stored = await client.get(keys.EPOCH)
    info: dict[str, object] = await client.info("replication")
    if info.get("role") == "slave":
        raise ReadOnlyError("this server is a replica")
    name, _, known = (stored or b"").decode().partition(" ")
    current, before = str(info.get("master_replid", "")), str(info.get("master_replid2", "")).strip("0")
    if name and name != other_than and (known == current or not current):
        return name
    if not name or name == other_than or (known and (before or not await _keeps_all(client))):
        name = secrets.token_hex(4)
    epoch: bytes = await _epoch(client, args=[stored or b"", f"{name} {current}"])
    return epoch.decode().partition(" ")[0]


async def _keeps_all(client: Redis) -> bool:
    persistence: dict[str, object] = await client.info("persistence")
    return bool(persistence.get("aof_enabled", True))


def purged_record(data: bytes) -> Record | None:
    """The record in the `done` event of a job that was purged with its end; None for every other `done`."""
    record = data.partition(b" ")[2]
    if not record:
        return None
    fields: dict[str, str] = msgspec.json.decode(record)
    return {name.encode(): value.encode() for name, value in fields.items()}
