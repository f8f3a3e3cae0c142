"""The adapter: what a benchmark asks of a library. Each process loads the one that it is told, and uses half of it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod


class System(ABC):
    """A library under test. A worker process calls `run_worker`; a client process calls all the rest.

    Its module imports the library at the top, so that no import is measured.
    """

    def __init__(self, url: str) -> None:
        """`url`: `unix:///path` of the Redis server."""
        self.url = url

    @property
    def socket(self) -> str:
        """The path in `url`."""
        return self.url.removeprefix("unix://")

    @abstractmethod
    def run_worker(self, slots: int) -> None:
        """Run a worker with so many slots in this process, until SIGTERM."""

    @abstractmethod
    async def open(self) -> None:
        """Prepare to submit; no worker has run yet."""

    @abstractmethod
    async def enqueue(self) -> None:
        """Submit a job that does nothing, and calls `MARKS.noop`."""

    async def enqueue_many(self, jobs: int) -> bool:
        """Submit so many of them in one call, all or none. False when the library has no such call."""
        return False

    @abstractmethod
    async def enqueue_stamped(self, sent_ns: int) -> None:
        """Submit a job that calls `MARKS.stamp(sent_ns)`."""

    @abstractmethod
    async def result(self, sent_ns: int) -> None:
        """Submit the same; return when its result is here, by the fastest way that the library has."""

    @abstractmethod
    async def left(self) -> int:
        """How many jobs have not ended, in as few commands as possible."""


def load_system(reference: str, url: str) -> System:
    """The adapter at `module:Class`."""
    module, _, name = reference.partition(":")
    system = getattr(importlib.import_module(module), name)(url)
    if not isinstance(system, System):
        raise TypeError(f"{reference} is no System")
    return system
