"""The API's book of tasks: what it says while it is still reading."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from jobstream import catalogue
from jobstream.catalogue import Announcement, WorkerInfo
from jobstream.fake import FakeSource
from jobstream_api import service
from jobstream_api.service import TaskBook
from tests.worker_tasks import add


async def test_no_task_is_called_unknown_while_the_catalogue_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests meet an API that has just started: the second must not be answered from an empty book."""
    client = FakeSource().client()
    info = WorkerInfo(id="w", tasks=("add",), queues=("default",), slots=1, running=0, started_at=0)
    await catalogue.beat(client, info, [add], life=60)
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(client: Redis) -> tuple[int, dict[str, Announcement]]:
        reading.set()
        await go_on.wait()
        return await catalogue.read_catalogue(client)

    monkeypatch.setattr(service, "read_catalogue", slowly)
    book = TaskBook(client)
    first = asyncio.create_task(book.validator("add"))
    await reading.wait()
    second = asyncio.create_task(book.validator("add"))
    await asyncio.sleep(0)
    go_on.set()
    assert await first is not None
    assert await second is not None
    await client.aclose()
