"""A bench for tasks: a real JobContext that remembers what the task said, and real uploads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobstream import JobContext, JobFile
from jobstream.cancellation import Flag
from jobstream.files import FileStore
from jobstream.gauge import ProgressState, state_of
from jobstream.outbox import Outbox


class RecordingOutbox(Outbox):
    """Keeps every state, where the worker's writer only sees the latest."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.states: list[ProgressState] = []
        self.listener: Callable[[ProgressState], object] = _ignore
        """Called with each state, in the thread that speaks."""

    def set_progress(
        self,
        current: float | None = None,
        total: float | None = None,
        message: str | None = None,
        items: tuple[str, ...] | None = None,
    ) -> None:
        super().set_progress(current, total, message, items)
        self.interrupt()  # each word is to come this way
        state = state_of(self.gauge)
        self.states.append(state)
        self.listener(state)


def _ignore(state: ProgressState) -> None:
    """Nobody listens."""


class Bench:
    """Runs a task without a worker."""

    def __init__(self, store: FileStore) -> None:
        self.outbox = RecordingOutbox()
        self.store = store
        self.cancelled = Flag()
        self.job = JobContext(
            "job-1",
            task="under-test",
            attempt=1,
            max_attempts=1,
            outbox=self.outbox,
            files=store,
            cancelled=self.cancelled,
        )
        self._uploads = 0
        self._entries: list[tuple[str, Any]] = []

    @classmethod
    def at(cls, root: Path) -> Bench:
        """A bench whose uploads lie in `root`."""
        return cls(FileStore(root))

    async def upload(self, content: bytes, name: str = "a.txt", content_type: str | None = None) -> JobFile:
        """Store a file as the API would."""
        self._uploads += 1
        writer = self.store.create(self.job.id, self._uploads, name=name, content_type=content_type)
        async with writer:
            await writer.write(content)
        return writer.file

    @property
    def progress(self) -> ProgressState:
        """The latest state."""
        return self.outbox.states[-1]

    def logs(self) -> list[str]:
        """The messages logged so far."""
        return [entry["message"] for kind, entry in self._said() if kind == "log"]

    def chunks(self) -> list[Any]:
        """The partial output so far."""
        return [entry for kind, entry in self._said() if kind == "chunk"]

    def _said(self) -> list[tuple[str, Any]]:
        self._entries += [(entry.kind, json.loads(entry.data)) for entry in self.outbox.take().entries]
        return self._entries
