"""An API that asks who is there, in this process and on a real port, and keys to knock with."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from arq.connections import ArqRedis

from jobstream.apikeys import create_key
from jobstream.caller import Scope
from jobstream.catalogue import WorkerInfo, beat
from jobstream.files import FileStore
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream.task import Task, task
from jobstream_api.main import create_server
from jobstream_api.settings import ApiSettings
from tests.ports import free_port

EVERYTHING = (Scope.SUBMIT, Scope.READ, Scope.CANCEL)


@task(name="quiet")
async def quiet(text: str = "") -> str:
    """A task that nobody runs: there is no worker."""
    return text


@dataclass
class Guarded:
    """The service, and the Redis behind it."""

    url: str
    client: ArqRedis
    queue: Queue
    files: FileStore
    keys: dict[str, str] = field(default_factory=dict)

    async def key(self, tenant: str, *scopes: Scope, lifetime: float | None = None) -> str:
        """A new key."""
        _, text = await create_key(self.client, tenant=tenant, scopes=scopes or EVERYTHING, lifetime=lifetime)
        return text

    def http(self, credentials: str | None = None, **headers: str) -> httpx2.AsyncClient:
        """A client with a bearer token."""
        if credentials is not None:
            headers["Authorization"] = f"Bearer {credentials}"
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=20, verify=False)


@contextlib.asynccontextmanager
async def guarded(source: RedisSource, **settings: Any) -> AsyncIterator[Guarded]:
    """The API in this event loop, with authentication unless the settings say otherwise, and one announced task."""
    chosen = ApiSettings(**{"auth": "on", "port": free_port(), "log_level": "warning", **settings})
    client = source.client()
    await announce(client, [quiet])
    server = create_server(chosen, source)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
                assert not serving.done(), serving
        yield Guarded(f"http://127.0.0.1:{chosen.port}", client, Queue(client), FileStore.at(chosen.files_place))
    finally:
        server.handle_exit(signal.SIGTERM, None)
        await serving
        await client.aclose()


async def announce(client: ArqRedis, tasks: Iterable[Task]) -> None:
    """Say that there is a worker for these."""
    tasks = list(tasks)
    names = tuple(each.name for each in tasks)
    worker = WorkerInfo(id="w", tasks=names, queues=("default",), slots=1, running=0, started_at=0)
    await beat(client, worker, tasks, life=600)
