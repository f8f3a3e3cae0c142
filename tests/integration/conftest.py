"""What the worker's tests share: its settings, a worker, the queue that it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream_workers.worker import Worker
from tests.working import Settings, quick_settings, working


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Makes settings: of a worker that stops at once, with the changes that are asked for."""
    return partial(quick_settings, tmp_path)


@pytest.fixture
async def worker(source: RedisSource, settings: Settings) -> AsyncIterator[Worker]:
    """A worker on `source`."""
    async with working(source, settings()) as worker:
        yield worker


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    """The client side of `source`."""
    return Queue(client)
