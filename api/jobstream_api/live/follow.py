"""Follow one job: a snapshot or a resumption, the log, then every change, until `done`. Knows no wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from redis.asyncio import Redis

from jobstream.errors import JobGone, JobNotFound
from jobstream.events import EventId, JobEvent, Snapshot, read_position, read_snapshot
from jobstream.job import FINAL, Record, job_from_record
from jobstream.redis import is_unavailable
from jobstream.store import was_purged
from jobstream_api.live.feed import Feed
from jobstream_api.live.hub import Hub

PAGE_EVENTS = 256
"""Log entries read at a time: a watcher that is slow holds no more of them than this."""

JOIN_SECONDS = 2.0
"""How long a watcher that joins waits for the job's record, besides its subscription."""

AWAY_SECONDS = 1.0
"""How long a follower waits before it reads again when Redis was away."""


class Frame(NamedTuple):
    """What a watcher is sent. `id` on durable events only; `data` is JSON."""

    event: str
    id: str | None
    time_ms: int
    data: bytes


OPENED = Frame("opened", None, 0, b"")
"""The job exists and is watched: from here on nothing is missed. Always the first frame."""

PING = Frame("ping", None, 0, b"")
"""Nothing has happened for a heartbeat."""

GOODBYE = Frame("goodbye", None, 0, b"")
"""The process is shutting down: the watcher continues elsewhere."""


class Follower:
    """Follows one job for one watcher. Use `frames` once."""

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
        self._fresh = after is None or after.epoch != epoch
        """The watcher is to be sent a snapshot."""
        self._version = 0 if after is None or self._fresh else after.version
        """The last version that the watcher has."""

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """`OPENED`, then the frames, the last of them `done`, or `GOODBYE` when the process shuts down before.

        No frame at all when the watcher has seen `done` already. Before the first frame: raises JobNotFound, JobGone,
        and TimeoutError or redis-py's errors when Redis is away. After it, a job that is purged ends the frames with
        JobGone; that Redis is away only delays them. Close it (`contextlib.aclosing`) if it may be left unfinished.
        """
        async with self._hub.watch(self._job_id) as feed:
            async with asyncio.timeout(JOIN_SECONDS), self._hub.readers:
                ended = await self._ended_before()
            if ended:
                return
            yield OPENED
            while True:
                for frame in await self._next(feed):
                    yield frame
                    if frame.event == "done":
                        return
                if feed.closed:
                    yield GOODBYE
                    return

    async def _ended_before(self) -> bool:
        position = await read_position(self._client, self._job_id)
        if position is None:
            raise await self._missing()
        return not self._fresh and position.status in FINAL and position.version == self._version

    async def _next(self, feed: Feed) -> list[Frame]:
        heard = await feed.take(self._heartbeat)
        if heard is None:
            return await self._catch_up(feed)
        if not heard and not feed.closed:
            return [PING]
        frames: list[Frame] = []
        for since, event in heard:
            if event.version <= self._version:
                continue
            if since > self._version + 1 or event.kind == "done":
                feed.make_stale()  # a gap, or the end, whose data is in the record
                break
            frames.append(self._frame(event))
            self._version = feed.version = event.version
        return frames

    async def _catch_up(self, feed: Feed) -> list[Frame]:
        """The next page of what record and log have beyond what was sent."""
        try:
            async with self._hub.readers:
                snapshot = await self._read()
        except Exception as error:
            if not is_unavailable(error):
                raise
            feed.make_stale()
            await asyncio.sleep(AWAY_SECONDS)
            return [PING]
        frames: list[Frame] = []
        if self._fresh or not snapshot.complete:
            frames.append(self._snapshot_frame(snapshot))
        elif snapshot.version > self._version and not snapshot.more and b"progress" in snapshot.record:
            # Which of the versions between were progress is not known: its latest state says it all.
            frames.append(Frame("progress", None, _changed_ms(snapshot), snapshot.record[b"progress"]))
        frames += [self._logged(event, snapshot) for event in snapshot.events]
        self._fresh = False
        self._version = feed.version = snapshot.events[-1].version if snapshot.more else snapshot.version
        if snapshot.more:
            feed.make_stale()
        return frames

    async def _read(self) -> Snapshot:
        snapshot = await read_snapshot(self._client, self._job_id, after=self._version, limit=PAGE_EVENTS)
        if snapshot is not None and snapshot.version < self._version:  # history went back: begin anew
            self._version, self._fresh = 0, True
            snapshot = await read_snapshot(self._client, self._job_id, after=0, limit=PAGE_EVENTS)
        if snapshot is None:
            raise await self._missing()
        return snapshot

    def _snapshot_frame(self, snapshot: Snapshot) -> Frame:
        """The whole job, under the id just before the first event that follows."""
        before = snapshot.events[0].version - 1 if snapshot.events else snapshot.version
        return Frame("snapshot", self._id(before), _changed_ms(snapshot), self._job(snapshot.record))

    def _logged(self, event: JobEvent, snapshot: Snapshot) -> Frame:
        if event.kind != "done":
            return self._frame(event)
        if event.version == snapshot.version:
            return Frame("done", self._id(event.version), event.time_ms, self._job(snapshot.record))
        # It was not the end: the job was run again, and its record speaks of that run.
        status = b'{"status":"%b"}' % event.data
        return Frame("status", self._id(event.version), event.time_ms, status)

    def _frame(self, event: JobEvent) -> Frame:
        return Frame(event.kind, self._id(event.version) if event.durable else None, event.time_ms, event.data)

    def _id(self, version: int) -> str:
        return str(EventId(self._epoch, version))

    def _job(self, record: Record) -> bytes:
        return job_from_record(record, prefix=self._prefix).model_dump_json().encode()

    async def _missing(self) -> JobNotFound | JobGone:
        if await was_purged(self._client, self._job_id):
            return JobGone(f"Job {self._job_id} was purged")
        return JobNotFound(f"There is no job {self._job_id[:64]!r}")


def _changed_ms(snapshot: Snapshot) -> int:
    return snapshot.events[-1].time_ms if snapshot.events else int(snapshot.record[b"created_at"])
