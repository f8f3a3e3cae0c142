"""Follow one job: a snapshot or a resumption, the log, then every change, until `done`. Knows no wire format."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream.errors import JobGone, JobNotFound
from jobstream.events import EventId, JobEvent, Snapshot, read_snapshot
from jobstream.job import FINAL, Record, job_from_record
from jobstream.store import was_purged
from jobstream_api.live.hub import Feed, Hub


class Frame(NamedTuple):
    """What a watcher is sent. `id` on durable events only; `data` is JSON."""

    event: str
    id: str | None
    time_ms: int
    data: bytes


PING = Frame("ping", None, 0, b"")
"""Nothing has happened for a heartbeat."""

GOODBYE = Frame("goodbye", None, 0, b"")
"""The process is shutting down: the watcher continues elsewhere."""


class Follower:
    """Follows one job for one watcher."""

    def __init__(
        self,
        client: Redis,
        hub: Hub,
        job_id: str,
        *,
        epoch: str,
        after: EventId | None,
        heartbeat: float,
        prefix: str = "",
    ) -> None:
        self._client = client
        self._hub = hub
        self._job_id = job_id
        self._epoch = epoch
        self._heartbeat = heartbeat
        self._prefix = prefix
        self._version = after.version if after is not None and after.epoch == epoch else 0
        self._fresh = after is None or after.epoch != epoch

    async def ended_before(self) -> bool:
        """True when the watcher has seen `done` already: there is nothing to follow. Raises JobNotFound, JobGone."""
        snapshot = await read_snapshot(self._client, self._job_id, after=self._version)
        if snapshot is None:
            raise await self._missing()
        ended = snapshot.record[b"status"].decode() in FINAL
        return ended and not self._fresh and self._version == int(snapshot.record[b"version"])

    async def frames(self) -> AsyncIterator[Frame]:
        """The frames, the last of them `done`, or `GOODBYE` when the process shuts down before."""
        async with self._hub.watch(self._job_id) as feed:
            for frame in await self._read(first=True):
                yield frame
                if frame.event == "done":
                    return
            async for frame in self._live(feed):
                yield frame
                if frame.event == "done":
                    return

    async def _live(self, feed: Feed) -> AsyncIterator[Frame]:
        while not feed.closed:
            events, stale = await feed.take(self._heartbeat)
            if not events and not stale and not feed.closed:
                yield PING
                stale = True  # silence: was the last message lost? (point 4 of the hub's argument)
            if stale:
                for frame in await self._read(first=False):
                    yield frame
            for event in events:
                if event.version > self._version:
                    self._version = event.version
                    yield await self._frame(event)
        yield GOODBYE

    async def _read(self, *, first: bool) -> list[Frame]:
        """All that the record and the log have beyond what was sent."""
        snapshot = await read_snapshot(self._client, self._job_id, after=self._version)
        if snapshot is None:
            raise await self._missing()
        version = int(snapshot.record[b"version"])
        frames: list[Frame] = []
        lost = not snapshot.complete or self._version > version
        if (first and self._fresh) or lost:
            if lost and self._version > version:  # history went back: begin anew
                self._version = 0
                snapshot = await read_snapshot(self._client, self._job_id, after=0) or snapshot
            frames.append(self._snapshot_frame(snapshot))
        elif version > self._version and b"progress" in snapshot.record:
            # Which of the versions between were progress is not known: its latest state says it all.
            frames.append(Frame("progress", None, _changed_ms(snapshot), snapshot.record[b"progress"]))
        for event in snapshot.events:
            if event.kind == "done":
                frames.append(self._done(event, snapshot.record))
            else:
                frames.append(self._durable(event, event.data))
        self._version = version
        return frames

    async def _frame(self, event: JobEvent) -> Frame:
        if event.kind == "done":
            snapshot = await read_snapshot(self._client, self._job_id, after=event.version)
            if snapshot is None:
                raise await self._missing()
            return self._done(event, snapshot.record)
        if event.durable:
            return self._durable(event, event.data)
        return Frame(event.kind, None, event.time_ms, event.data)

    def _snapshot_frame(self, snapshot: Snapshot) -> Frame:
        """The whole job, under the id just before the first event that follows."""
        before = snapshot.events[0].version - 1 if snapshot.events else int(snapshot.record[b"version"])
        return Frame("snapshot", str(EventId(self._epoch, before)), _changed_ms(snapshot), self._job(snapshot.record))

    def _done(self, event: JobEvent, record: Record) -> Frame:
        return self._durable(event, self._job(record))

    def _durable(self, event: JobEvent, data: bytes) -> Frame:
        return Frame(event.kind, str(EventId(self._epoch, event.version)), event.time_ms, data)

    def _job(self, record: Record) -> bytes:
        return job_from_record(record, prefix=self._prefix).model_dump_json().encode()

    async def _missing(self) -> JobNotFound | JobGone:
        if await was_purged(self._client, self._job_id):
            return JobGone(f"Job {self._job_id} was purged")
        return JobNotFound(f"There is no job {self._job_id[:64]!r}")


def _changed_ms(snapshot: Snapshot) -> int:
    return snapshot.events[-1].time_ms if snapshot.events else int(snapshot.record[b"created_at"])
