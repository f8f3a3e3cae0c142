"""A page: what record and log of a job have behind a version, as frames; one read serves all who asked for it."""

from __future__ import annotations

from functools import cached_property

from jobstream.batch import batch_from_record, batch_progress, is_batch
from jobstream.events import EventId, JobEvent, Snapshot
from jobstream.job import FINAL, Record, job_from_record
from jobstream_api.live.frame import Frame, event_frame


def job_json(record: Record, *, prefix: str = "") -> bytes:
    """The whole Job, as `snapshot` and `done` carry it; or the whole Batch."""
    if is_batch(record):
        return batch_from_record(record, prefix=prefix).model_dump_json().encode()
    return job_from_record(record, prefix=prefix).model_dump_json().encode()


class Page:
    """Read at one moment, of the history that `epoch` names."""

    def __init__(self, snapshot: Snapshot, *, after: int, epoch: str, prefix: str = "") -> None:
        self.after = after
        """Behind which version it was read."""
        self.epoch = epoch
        self.complete = snapshot.complete
        self.more = snapshot.more
        self.version = snapshot.events[-1].version if snapshot.more else snapshot.version
        """How far a watcher is that has been sent all of it."""
        self.record_version = snapshot.version
        self.ended = snapshot.record[b"status"].decode() in FINAL
        self._snapshot = snapshot
        self._prefix = prefix

    @cached_property
    def snapshot(self) -> Frame:
        """The whole job, under the id just before the first event that follows."""
        events = self._snapshot.events
        before = events[0].version - 1 if events else self.version
        return Frame("snapshot", self._id(before), self._changed_ms, self._job, version=before)

    @cached_property
    def progress(self) -> Frame | None:
        """The latest progress. Which of the versions between were progress is not known: its latest state says all."""
        record = self._snapshot.record
        data = batch_progress(record).model_dump_json().encode() if is_batch(record) else record.get(b"progress")
        return None if data is None else Frame("progress", None, self._changed_ms, data)

    @cached_property
    def events(self) -> list[Frame]:
        """The durable ones, in order; the last one is `done` when the job has ended."""
        return [self._event(event) for event in self._snapshot.events]

    def _event(self, event: JobEvent) -> Frame:
        if event.kind != "done":
            return event_frame(event, self.epoch)
        if event.version == self.record_version:
            return Frame("done", self._id(event.version), event.time_ms, self._job, version=event.version)
        # It was not the end: the job was run again, and its record speaks of that run.
        status = b'{"status":"%b"}' % event.data
        return Frame("status", self._id(event.version), event.time_ms, status, version=event.version)

    @cached_property
    def _job(self) -> bytes:
        return job_json(self._snapshot.record, prefix=self._prefix)

    @property
    def _changed_ms(self) -> int:
        events = self._snapshot.events
        return events[-1].time_ms if events else int(self._snapshot.record[b"created_at"])

    def _id(self, version: int) -> str:
        return str(EventId(self.epoch, version))
