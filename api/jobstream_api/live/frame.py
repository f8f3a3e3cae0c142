"""A frame: what a watcher is sent, encoded once for each wire format however many watchers share it."""

from __future__ import annotations

from typing import Protocol

from jobstream.events import DURABLE, EventId, JobEvent


class WireFormat(Protocol):
    """How frames look on the wire. One object per format: frames remember their bytes by it."""

    media_type: str

    @property
    def opening(self) -> bytes:
        """What a stream begins with."""

    def encode(self, frame: Frame) -> bytes:
        """The frame's bytes."""


class Frame:
    """`id` on durable events and snapshots only; `data` is JSON.

    It takes a watcher from any version from `since - 1` on to `version`: progress stands for what it has replaced.
    """

    __slots__ = ("_wire", "data", "event", "id", "since", "time_ms", "version")

    def __init__(
        self, event: str, id: str | None, time_ms: int, data: bytes, *, since: int = 0, version: int = 0
    ) -> None:
        self.event = event
        self.id = id
        self.time_ms = time_ms
        self.data = data
        self.since = since
        self.version = version
        self._wire: dict[WireFormat, bytes] = {}

    def wire(self, format: WireFormat) -> bytes:
        """The frame's bytes in that format."""
        encoded = self._wire.get(format)
        if encoded is None:
            encoded = self._wire[format] = format.encode(self)
        return encoded

    def __repr__(self) -> str:
        return f"Frame({self.event!r}, {self.id!r}, {self.version}, {self.data!r})"


def event_frame(event: JobEvent, epoch: str) -> Frame:
    """The frame of an event whose data is what watchers are sent."""
    event_id = str(EventId(epoch, event.version)) if event.kind in DURABLE else None
    return Frame(event.kind, event_id, event.time_ms, event.data, since=event.version, version=event.version)
