"""Both clients in one shape, so that one test body holds for both: the blocking one speaks in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar, Unpack, overload

import pytest
from pydantic import BaseModel, JsonValue, TypeAdapter

from jobstream.client import BatchItem, Client, Event, JobHandle, SubmitOptions, SyncClient, SyncJobHandle, TaskInfo
from jobstream.client.transfer import JobFileInfo, OnProgress, Upload
from jobstream.job import Job

T = TypeVar("T")


async def _each(items: Generator[T]) -> AsyncGenerator[T]:
    """A blocking generator, each step in a thread; closed with this one."""
    try:
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            yield item
    finally:
        await asyncio.to_thread(items.close)


class ThreadedHandle:
    """A `SyncJobHandle` in the shape of a `JobHandle`."""

    def __init__(self, handle: SyncJobHandle) -> None:
        self._handle = handle
        self.id = handle.id

    async def get(self) -> Job:
        return await asyncio.to_thread(self._handle.get)

    def events(self, after: str | None = None) -> AsyncGenerator[Event]:
        return _each(self._handle.events(after))

    async def wait(self, timeout: float | None = None) -> Job:
        return await asyncio.to_thread(self._handle.wait, timeout)

    @overload
    async def result(self, timeout: float | None = None) -> JsonValue | bytes: ...

    @overload
    async def result(self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T]) -> T: ...

    async def result(
        self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T] | None = None
    ) -> T | JsonValue | bytes:
        if type is None:
            return await asyncio.to_thread(self._handle.result, timeout)
        return await asyncio.to_thread(self._handle.result, timeout, type=type)

    async def files(self) -> list[JobFileInfo]:
        return await asyncio.to_thread(self._handle.files)

    async def download(
        self, name: str | None = None, to: Path | str | None = None, *, on_progress: OnProgress | None = None
    ) -> Path:
        return await asyncio.to_thread(self._handle.download, name, to, on_progress=on_progress)

    async def cancel(self) -> Job:
        return await asyncio.to_thread(self._handle.cancel)

    async def retry(self) -> Job:
        return await asyncio.to_thread(self._handle.retry)

    async def purge(self) -> None:
        await asyncio.to_thread(self._handle.purge)


class ThreadedClient:
    """A `SyncClient` in the shape of a `Client`."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    async def __aenter__(self) -> Self:
        self._client.__enter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.__exit__(None, None, None)

    async def submit(
        self,
        task: str,
        input: Mapping[str, object] | BaseModel | None = None,
        files: Sequence[Upload] | Mapping[str, Sequence[Upload]] = (),
        **options: Unpack[SubmitOptions],
    ) -> ThreadedHandle:
        return ThreadedHandle(await asyncio.to_thread(self._client.submit, task, input, files, **options))

    async def submit_batch(
        self, items: Sequence[BatchItem], *, idempotency_key: str | None = None
    ) -> list[ThreadedHandle]:
        handles = await asyncio.to_thread(self._client.submit_batch, items, idempotency_key=idempotency_key)
        return [ThreadedHandle(handle) for handle in handles]

    def job(self, job_id: str) -> ThreadedHandle:
        return ThreadedHandle(self._client.job(job_id))

    def jobs(
        self, *, status: str | None = None, task: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job]:
        return _each(self._client.jobs(status=status, task=task, tag=tag, limit=limit))

    async def tasks(self) -> list[TaskInfo]:
        return await asyncio.to_thread(self._client.tasks)


AnyClient = Client | ThreadedClient
AnyHandle = JobHandle | ThreadedHandle


class Connect(Protocol):
    """Makes a client of the kind that is tested."""

    def __call__(
        self, url: str, *, token: str | None = None, patience: float = 60.0, max_pause: float = 30.0
    ) -> AnyClient: ...


def connect_async(url: str, *, token: str | None = None, patience: float = 60.0, max_pause: float = 30.0) -> Client:
    """The client for asyncio."""
    return Client(url, token=token, patience=patience, max_pause=max_pause)


def connect_sync(
    url: str, *, token: str | None = None, patience: float = 60.0, max_pause: float = 30.0
) -> ThreadedClient:
    """The blocking client, in threads."""
    return ThreadedClient(SyncClient(url, token=token, patience=patience, max_pause=max_pause))


@pytest.fixture(params=[connect_async, connect_sync], ids=["async", "sync"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Each test twice: with the client for asyncio, then with the blocking one."""
    made: Connect = request.param
    return made
