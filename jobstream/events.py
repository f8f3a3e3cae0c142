"""A job's events: the bell (pub/sub message), the log (stream) and the id by which a client resumes."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream import keys
from jobstream.job import Record

DURABLE = frozenset({"status", "log", "chunk", "done"})
"""Events that are in the log and carry an id. `progress` is state: the latest is in the record."""

_EVENT_ID = re.compile(r"(?P<epoch>[0-9a-f]{8})-(?P<version>[0-9]{1,15})\Z")


class JobEvent(NamedTuple):
    """One change of a job. `data` is JSON, except of `done`, whose data is the status that the job ended with."""

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


class Snapshot(NamedTuple):
    """The record and the log behind a version, read at one moment. `complete` is False when the log was trimmed."""

    record: Record
    events: list[JobEvent]
    complete: bool


def parse_event_id(text: str) -> EventId | None:
    """The id, or None for text that never was one of ours."""
    match = _EVENT_ID.match(text)
    return EventId(match["epoch"], int(match["version"])) if match else None


def parse_message(message: bytes) -> JobEvent:
    """A pub/sub message of `keys.events`: `<version> <kind> <ms> <data>`."""
    version, kind, time_ms, data = message.split(b" ", 3)
    return JobEvent(int(version), kind.decode(), int(time_ms), data)


async def read_snapshot(client: Redis, job_id: str, *, after: int) -> Snapshot | None:
    """The record and all durable events with a version above `after`; None when there is no record."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.record(job_id))
        pipe.xrange(keys.log(job_id), min=f"({after}-18446744073709551615", max="+")
        pipe.xrange(keys.log(job_id), count=1)
        record, entries, first = await pipe.execute()
    if b"status" not in record:
        return None
    events = [
        JobEvent(int(entry_id.partition(b"-")[0]), fields[b"e"].decode(), int(fields[b"t"]), fields[b"d"])
        for entry_id, fields in entries
    ]
    oldest = int(first[0][0].partition(b"-")[0]) if first else None
    # Version 1 is always durable (the submit), so a log that begins later has lost its beginning.
    complete = oldest is not None and (oldest == 1 or after >= oldest - 1)
    return Snapshot(record, events, complete)


async def read_epoch(client: Redis) -> str:
    """The name of this history of the data; made once, by whoever asks first."""
    await client.set(keys.EPOCH, secrets.token_hex(4), nx=True)
    epoch: bytes = await client.get(keys.EPOCH)
    return epoch.decode()
