"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import httpx2
from pydantic import BaseModel, JsonValue, TypeAdapter

from jobstream.batch import Batch
from jobstream.client import calls
from jobstream.client.calls import DEFAULT_URL, BatchItem, BulkFilter, Call, ScheduleOptions, SubmitOptions, TaskInfo
from jobstream.client.errors import Rejected, StillRunning, Unavailable, Unreachable
from jobstream.client.stream import Event, Following, Policy
from jobstream.client.transfer import Download, JobFileInfo, OnProgress, Upload, chosen, place_for
from jobstream.job import Job
from jobstream.schedule import Schedule

T = TypeVar("T")


class Client:
    """A connection pool to one service. Use it with `async with`.

    `token`: sent as a bearer token. `timeout`: seconds to wait for an answer. `patience`: seconds a stream that has
    been cut keeps trying to come back before it raises `Unreachable`. `max_pause`: seconds between two attempts to
    come back, at most, whatever the service asks for. A URL that is none raises `Unreachable`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        patience: float = 60.0,
        max_pause: float = 30.0,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._policy = Policy(self.base_url, patience, max_pause)
        self._met = False
        try:
            self._http = httpx2.AsyncClient(**calls.connection_options(self.base_url, token, timeout))
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{base_url!r} is not a URL: {error}") from None

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def submit(
        self,
        task: str,
        input: Mapping[str, object] | BaseModel | None = None,
        files: Sequence[Upload] | Mapping[str, Sequence[Upload]] = (),
        **options: Unpack[SubmitOptions],
    ) -> JobHandle:
        """Hand in a job and return its handle as soon as the service has stored it.

        `files`, paths or files that are open for reading, are uploaded to the field `files`, or to the fields that the
        mapping names, and are read as they are sent. With an `idempotency_key` a submit that was cut, or answered with
        503, is sent again, and never makes a second job. Raises `Rejected` (422 with `problem.errors` for an input that
        does not fit), `NotFound` for an unknown task, `Unreachable`, and OSError for a file that cannot be read.
        """
        return JobHandle(self, (await self._send(calls.submit(task, input, files, **options))).id)

    async def submit_batch(self, items: Sequence[BatchItem], *, idempotency_key: str | None = None) -> BatchHandle:
        """Hand in up to 10,000 jobs of any tasks, all or none, in one request: the batch, which is also the handles of
        its jobs, in order.

        With an `idempotency_key` a batch that was cut, or answered with 503, is sent again, and never becomes a second
        one. Raises `Rejected` (422 with `problem.errors`, whose pointers begin with the job's number) and
        `Unreachable`: then nothing was stored.
        """
        stored = await self._send(calls.submit_batch(items, idempotency_key=idempotency_key))
        return BatchHandle(self, stored.id, [JobHandle(self, job.id) for job in stored.jobs])

    def batch(self, batch_id: str) -> BatchHandle:
        """The handle of a batch whose id is known, without those of its jobs: `jobs()` asks for them. Asks nobody."""
        return BatchHandle(self, batch_id)

    async def cancel_jobs(self, **wanted: Unpack[BulkFilter]) -> JobHandle:
        """Cancel all jobs that match and are there now, by a job: its result counts `matched`, `changed`, `skipped`.

        Raises `Rejected` for a filter that says nothing, unless it says `all=True`.
        """
        return JobHandle(self, (await self._send(calls.change_all("cancel", wanted))).id)

    async def retry_jobs(self, **wanted: Unpack[BulkFilter]) -> JobHandle:
        """Run all jobs again that match and have failed by now, or with `status="cancelled"` were cancelled.

        As `cancel_jobs`.
        """
        return JobHandle(self, (await self._send(calls.change_all("retry", wanted))).id)

    def job(self, job_id: str) -> JobHandle:
        """The handle of a job whose id is known. Asks nobody."""
        return JobHandle(self, job_id)

    async def jobs(
        self, *, status: str | None = None, task: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job]:
        """Jobs, newest first, page by page as they are taken; at most `limit` of them."""
        pages = calls.pages(status=status, task=task, tag=tag, limit=limit)
        while pages.next is not None:
            for job in pages.take(await self._send(pages.next)):
                yield job

    async def tasks(self) -> list[TaskInfo]:
        """The catalogue: what can be submitted, and how many workers would run it."""
        return await self._send(calls.tasks())

    async def schedules(self, *, owner: str | None = None) -> AsyncGenerator[Schedule]:
        """Schedules: the tasks' own, then those that clients have made, by name. `owner`: whose, for admins."""
        cursor: str | None = None
        while True:
            page = await self._send(calls.schedules(cursor, owner))
            for schedule in page.schedules:
                yield schedule
            cursor = page.next_cursor
            if cursor is None:
                return

    async def schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """The schedule as it is now. Raises `NotFound`."""
        return await self._send(calls.schedule(name, owner))

    async def put_schedule(
        self,
        name: str,
        task: str,
        input: Mapping[str, object] | BaseModel | None = None,
        *,
        cron: str,
        timezone: str = "UTC",
        version: int | None = None,
        owner: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Make a schedule, or give it another definition; the same again changes nothing.

        `cron`: five fields, local times of `timezone`. `version`: that which it must have. Raises `Rejected` (422 with
        `problem.errors` for a cron, zone or input that will not do, 412 for another version, 409 for one too many).
        """
        return await self._send(
            calls.put_schedule(name, task, input, owner, cron=cron, timezone=timezone, version=version, options=options)
        )

    async def pause_schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """No more ticks; the one that waits for its time is cancelled."""
        return await self._send(calls.change_schedule(name, "pause", owner))

    async def resume_schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """Ticks again, from the next one on."""
        return await self._send(calls.change_schedule(name, "resume", owner))

    async def run_schedule(self, name: str, *, owner: str | None = None) -> JobHandle:
        """Run it once now, whatever its cron says."""
        return JobHandle(self, (await self._send(calls.run_schedule(name, owner))).id)

    async def delete_schedule(self, name: str, *, owner: str | None = None) -> None:
        """Forget it; its jobs stay. Raises `Rejected` for a task's own, which can be paused."""
        await self._send(calls.delete_schedule(name, owner))

    async def next_ticks(self, name: str, *, count: int = 10, owner: str | None = None) -> list[datetime]:
        """When it is due next, paused or not; in UTC."""
        return await self._send(calls.next_ticks(name, count, owner))

    async def _send(self, call: Call[T]) -> T:
        sent = 0
        while True:
            try:
                with call.request(self._http) as request:
                    response = await self._http.send(request, follow_redirects=call.follow_redirects)
                answer = call.answer(response)
                self._met = True
                return answer
            except (httpx2.RequestError, Rejected) as error:
                sent += 1
                pause = call.pause_before_resend(error, sent, self.base_url)
            await asyncio.sleep(pause)

    async def _download(self, download: Download) -> None:
        call = calls.download(download.file, self.base_url)
        sent = 0
        while True:
            before = download.at
            try:
                async with self._http.stream(
                    "GET", call.url, headers=download.headers, follow_redirects=True
                ) as response:
                    if not response.is_success:
                        await response.aread()
                    call.answer(response)
                    download.begin(response)
                    async for piece in response.aiter_bytes():
                        download.take(piece)
                if download.is_whole:
                    return
                raise httpx2.RemoteProtocolError("the download ended too early")
            except (httpx2.RequestError, Rejected) as error:
                sent = 1 if download.at > before else sent + 1
                pause = call.pause_before_resend(error, sent, self.base_url)
            await asyncio.sleep(pause)

    def _follow(self, job_id: str, after: str | None = None, path: str | None = None) -> Following:
        return Following(job_id, after, self._policy, met=self._met, path=path)

    async def _events(self, following: Following, *, while_mute: bool = True) -> AsyncGenerator[Event]:
        while not following.ended and (while_mute or not following.mute):
            failure: Exception | None = None
            try:
                async with self._http.sse(
                    following.path,
                    headers=following.headers,
                    timeout=following.timeout(),
                    max_event_size=None,  # our own service; a chunk may be as large as it likes
                ) as source:
                    if source.response.is_error:
                        await source.response.aread()
                    if following.opened(source.response):
                        async for frame in source:
                            if (event := following.take(frame)) is not None:
                                yield event
                            if following.ended:
                                return
            except (httpx2.RequestError, Unavailable) as error:
                failure = error
            if not following.ended:
                await asyncio.sleep(following.pause(failure))


class JobHandle:
    """A job on the service. Made by `Client.submit` and `Client.job`; holds nothing but the id."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    async def get(self) -> Job:
        """The job as it is now. Raises `NotFound`, or `Gone` for one that was purged within a day."""
        return await self._client._send(calls.get(self.id))

    def events(self, after: str | None = None) -> AsyncGenerator[Event]:
        """Every change, from a snapshot (or from just behind the event `after`) to `done`.

        A cut is healed here: the stream comes back with `Last-Event-ID`, so nothing is lost and nothing comes twice.
        Raises `NotFound`, `Gone` and `Unauthorized`, also when that comes to be meanwhile, and `Unreachable` when this
        client has never met the service, or it stays away for longer than the client's patience. Whoever leaves before
        the end and wants the connection closed at that moment uses `contextlib.aclosing`.
        """
        return self._client._events(self._client._follow(self.id, after))

    async def wait(self, timeout: float | None = None) -> Job:
        """The job once it is done, whatever its end. Raises `StillRunning` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._wait()
        except TimeoutError as error:
            raise StillRunning(self.id, timeout or 0.0) from error

    async def _wait(self) -> Job:
        stream = self._client._events(self._client._follow(self.id), while_mute=False)
        async with aclosing(stream) as events:
            async for event in events:
                if event.event == "done" and event.job is not None:
                    return event.job
        while True:  # a 204, which a look at the job confirms, or a mute stream, which looks replace
            job = await self._client._send(calls.get(self.id).patient())
            if job.done:
                return job
            await asyncio.sleep(calls.LOOK_SECONDS)

    @overload
    async def result(self, timeout: float | None = None) -> JsonValue | bytes: ...

    @overload
    async def result(self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T]) -> T: ...

    async def result(
        self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T] | None = None
    ) -> T | JsonValue | bytes:
        """The result once there is one: what the task returned, or the bytes of a file result.

        `type`: what it is to be, a pydantic model or any other type that pydantic can read; else it is plain JSON.
        Raises `JobFailed`, `JobCancelled`, `UnexpectedResult` for another type, and `StillRunning` when the job is not
        done after `timeout` seconds.
        """
        found: T | JsonValue | bytes = await self._client._send(
            calls.result(await self.wait(timeout), self._client.base_url, type)
        )
        return found

    async def files(self) -> list[JobFileInfo]:
        """The job's files: its uploads, and those that its result names."""
        return await self._client._send(calls.files(self.id))

    async def download(
        self, name: str | None = None, to: Path | str | None = None, *, on_progress: OnProgress | None = None
    ) -> Path:
        """Fetch a file of the job; its path. It is there when all of it is, and is what the service says it is.

        `name`: which one; None: that which the result is. `to`: a path, or a directory (None: this one), where it is
        called as the job calls it. A download that is cut goes on where it was. Raises LookupError when there is no
        such file, OSError, `UnexpectedResult` for one that has arrived damaged, and what `get` raises.
        """
        file = chosen(await self.files(), name)
        path = place_for(file, to)
        with Download.to(path, file, on_progress) as download:
            await self._client._download(download)
        return path

    async def cancel(self) -> Job:
        """Ask the job to stop; its record stays. A job that is done already is returned unchanged."""
        return await self._client._send(calls.cancel(self.id))

    async def retry(self) -> Job:
        """Run a failed or cancelled job again, under the same id. Raises Rejected when it is in no state for that."""
        return await self._client._send(calls.retry(self.id))

    async def purge(self) -> None:
        """Remove the job's record, result and files; a running one is stopped first."""
        await self._client._send(calls.purge(self.id))


class BatchHandle(Sequence[JobHandle]):
    """A batch on the service: the handles of its jobs, as far as they are known, and what is asked of all of them."""

    def __init__(self, client: Client, batch_id: str, jobs: Sequence[JobHandle] = ()) -> None:
        self._client = client
        self._jobs = jobs
        self.id = batch_id

    def __repr__(self) -> str:
        return f"BatchHandle({self.id!r})"

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, at: int) -> JobHandle: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[JobHandle]: ...

    def __getitem__(self, at: int | slice) -> JobHandle | Sequence[JobHandle]:
        return self._jobs[at]

    async def get(self) -> Batch:
        """The batch as it is now: how many of its jobs are in which state. Raises `NotFound`."""
        return await self._client._send(calls.batch(self.id))

    def events(self, after: str | None = None) -> AsyncGenerator[Event]:
        """Every change of the whole: `snapshot`, `status`, `progress`, `done`. As `JobHandle.events`."""
        return self._client._events(self._client._follow(self.id, after, calls.batch_path(self.id)))

    async def jobs(self, *, status: str | None = None) -> AsyncGenerator[Job]:
        """Its jobs, in their order, page by page as they are taken."""
        pages = calls.batch_pages(self.id, status=status)
        while pages.next is not None:
            for job in pages.take(await self._client._send(pages.next)):
                yield job

    async def wait(self, timeout: float | None = None) -> Batch:
        """The batch once all its jobs have ended, however. Raises `StillRunning` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._wait()
        except TimeoutError as error:
            raise StillRunning(self.id, timeout or 0.0) from error

    async def _wait(self) -> Batch:
        following = self._client._follow(self.id, None, calls.batch_path(self.id))
        async with aclosing(self._client._events(following, while_mute=False)) as events:
            async for event in events:
                if event.event == "done" and event.batch is not None:
                    return event.batch
        while True:
            batch = await self._client._send(calls.batch(self.id).patient())
            if batch.done:
                return batch
            await asyncio.sleep(calls.LOOK_SECONDS)

    async def cancel(self) -> Batch:
        """Ask all its jobs to stop; their records stay. None of them begins after that."""
        return await self._client._send(calls.cancel_batch(self.id))
