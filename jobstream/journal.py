"""The journal: the events of all jobs in one order, numbered; kept in Redis only while somebody wants it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.events import EventId, JobEvent, parse_message
from jobstream.scripts import Script
from jobstream.store import JobFilter

CHANNEL = keys.JOURNAL_ENTRY
"""Every entry is published here as `parse_entry` reads it."""

LIFE_SECONDS = 600.0
"""How long the journal is kept after the last `want`: a watcher that comes back by then has missed nothing."""

PAGE_BYTES = 1024**2
"""A page of the journal ends behind the entry that makes it as large as this."""

_want = Script("want")
_replay = Script("replay")


class _Status(msgspec.Struct):
    """The only part of a `status` event that is looked at here."""

    status: str


class Place(NamedTuple):
    """The journal that is kept now, and its last sequence number."""

    generation: str
    seq: int


class JournalEntry(NamedTuple):
    """An event with all that is asked of its job: the record may be gone when it is read. `was`: the status before."""

    generation: str
    seq: int
    was: str
    job_id: str
    task: str
    tags: frozenset[str]
    owner: str | None
    event: JobEvent

    @property
    def status(self) -> str:
        """The job's status after the event."""
        if self.event.kind == "done":
            return self.event.data.partition(b" ")[0].decode()
        if self.event.kind == "status":
            return msgspec.json.decode(self.event.data, type=_Status).status
        return self.was

    @property
    def durable(self) -> bool:
        """True for what the journal keeps: all but progress."""
        return self.event.kind != "progress"

    def matches(self, wanted: JobFilter) -> bool:
        """True when the job does. By status: before or after, so that who shows the jobs of one learns that it left."""
        return (
            (wanted.task is None or self.task == wanted.task)
            and (wanted.tag is None or wanted.tag in self.tags)
            and (wanted.owner is None or self.owner == wanted.owner)
            and (wanted.status is None or wanted.status in (self.was, self.status))
        )

    @property
    def id(self) -> EventId:
        """Where to resume behind this entry."""
        return EventId(self.generation, self.seq)


class JournalPage(NamedTuple):
    """Durable entries in order, and `seq`, the number up to which they are all that there is."""

    entries: list[JournalEntry]
    seq: int
    complete: bool
    """False when entries before these were trimmed."""
    more: bool
    """True when the journal goes on behind these entries."""


def parse_entry(text: bytes) -> JournalEntry:
    """`<generation> <seq> <status before> <lengths of id, task, tags and owner> <id><task><tags><owner><event>`."""
    generation, seq, was, *lengths, rest = text.split(b" ", 7)
    parts = []
    for length in map(int, lengths):
        parts.append(rest[:length].decode())
        rest = rest[length:]
    job_id, task, tags, owner = parts
    return JournalEntry(
        generation.decode(),
        int(seq),
        was.decode(),
        job_id,
        task,
        frozenset(tags.split()),
        owner or None,
        parse_message(rest),
    )


async def want(client: Redis, *, history: str, seen: Place | None = None, life: float = LIFE_SECONDS) -> Place:
    """Have the journal kept for `life` seconds more; the place that it has reached.

    It is another one than was `seen` when that is no more, when `history` (the epoch of the data) is another, or when
    it is behind what was seen: then writes were lost, and what came instead of them has the same numbers.
    """
    generation, seq = await _want(
        client,
        args=[
            history,
            secrets.token_hex(4),
            round(life * 1000),
            seen.generation if seen else "",
            seen.seq if seen else 0,
        ],
    )
    return Place(generation.decode(), int(seq))


async def read_place(client: Redis) -> Place | None:
    """The place that the journal has reached; None when nobody wants it."""
    fields = cast("Awaitable[list[bytes | None]]", client.hmget(keys.JOURNAL, ["generation", "seq"]))
    generation, seq = await fields
    return None if generation is None or seq is None else Place(generation.decode(), int(seq))


async def replay(client: Redis, place: Place, *, limit: int) -> JournalPage | None:
    """Up to `limit` durable entries behind `place`; None when that journal is no more."""
    answer = await _replay(client, args=[place.generation, place.seq, limit, PAGE_BYTES])
    if not answer:
        return None
    seq, complete, more, raw = answer
    entries = [parse_entry(entry) for entry in raw]
    return JournalPage(entries, entries[-1].seq if more else int(seq), bool(complete), bool(more))
