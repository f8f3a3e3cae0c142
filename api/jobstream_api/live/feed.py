"""A feed: what one watcher of a job has not taken yet, bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import NamedTuple

from jobstream.events import JobEvent

FEED_EVENTS = 512
"""Events that may wait for one watcher."""

FEED_BYTES = 4 * 1024**2
"""Bytes that may wait for one watcher."""


class Heard(NamedTuple):
    """An event, and the first version that it stands for: progress that it has replaced is part of it."""

    since: int
    event: JobEvent


class Feed:
    """Filled by the hub without ever waiting, emptied by one follower.

    It is stale when the log knows more than the feed: at first, after a gap, after an overflow. A stale feed holds
    nothing, since whoever takes from it reads the log *afterwards* and finds there all that was put here before.
    """

    def __init__(self) -> None:
        self._waiting: deque[Heard] = deque()
        self._bytes = 0
        self._stale = True
        self._closed = False
        self._changed = asyncio.Event()
        self._changed.set()
        self.version = 0
        """The last version that the follower has read or sent; the follower sets it."""

    def put(self, event: JobEvent) -> None:
        """Append an event; progress replaces the progress just before it."""
        if self._stale:
            return
        since = event.version
        if event.kind == "progress" and self._waiting:
            last = self._waiting[-1]
            if last.event.kind == "progress" and last.event.version == event.version - 1:
                self._waiting.pop()
                self._bytes -= len(last.event.data)
                since = last.since
        self._waiting.append(Heard(since, event))
        self._bytes += len(event.data)
        if len(self._waiting) > FEED_EVENTS or self._bytes > FEED_BYTES:
            self.make_stale()
        self._changed.set()

    def make_stale(self) -> None:
        """Forget what waits: the follower must read the log."""
        self._waiting.clear()
        self._bytes = 0
        self._stale = True
        self._changed.set()

    def close(self) -> None:
        """End the watch: the process is shutting down."""
        self._closed = True
        self._changed.set()

    @property
    def closed(self) -> bool:
        """True when the process is shutting down."""
        return self._closed

    async def take(self, timeout: float) -> list[Heard] | None:
        """What has come: nothing after `timeout` seconds of silence or when the feed closes, None when it is stale."""
        if not self._changed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
        self._changed.clear()
        if self._stale:
            self._stale = False
            return None
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return taken
