"""The client for plain scripts and threads: as `jobstream.client.aio`, without `await`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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


class SyncClient:
    """`Client` for code that does not await. Use it with `with`; threads may share it."""

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
            self._http = httpx2.Client(**calls.connection_options(self.base_url, token, timeout))
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{base_url!r} is not a URL: {error}") from None

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def submit(
        self,
        task: str,
        input: Mapping[str, object] | BaseModel | None = None,
        files: Sequence[Upload] | Mapping[str, Sequence[Upload]] = (),
        **options: Unpack[SubmitOptions],
    ) -> SyncJobHandle:
        """As `Client.submit`."""
        return SyncJobHandle(self, self._send(calls.submit(task, input, files, **options)).id)

    def submit_batch(self, items: Sequence[BatchItem], *, idempotency_key: str | None = None) -> SyncBatchHandle:
        """As `Client.submit_batch`."""
        stored = self._send(calls.submit_batch(items, idempotency_key=idempotency_key))
        return SyncBatchHandle(self, stored.id, [SyncJobHandle(self, job.id) for job in stored.jobs])

    def batch(self, batch_id: str) -> SyncBatchHandle:
        """As `Client.batch`."""
        return SyncBatchHandle(self, batch_id)

    def cancel_jobs(self, **wanted: Unpack[BulkFilter]) -> SyncJobHandle:
        """As `Client.cancel_jobs`."""
        return SyncJobHandle(self, (self._send(calls.change_all("cancel", wanted))).id)

    def retry_jobs(self, **wanted: Unpack[BulkFilter]) -> SyncJobHandle:
        """As `Client.retry_jobs`."""
        return SyncJobHandle(self, (self._send(calls.change_all("retry", wanted))).id)

    def job(self, job_id: str) -> SyncJobHandle:
        """The handle of a job whose id is known. Asks nobody."""
        return SyncJobHandle(self, job_id)

    def jobs(
        self, *, status: str | None = None, task: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> Generator[Job]:
        """As `Client.jobs`."""
        pages = calls.pages(status=status, task=task, tag=tag, limit=limit)
        while pages.next is not None:
            yield from pages.take(self._send(pages.next))

    def tasks(self) -> list[TaskInfo]:
        """As `Client.tasks`."""
        return self._send(calls.tasks())

    def schedules(self, *, owner: str | None = None) -> Generator[Schedule]:
        """As `Client.schedules`."""
        cursor: str | None = None
        while True:
            page = self._send(calls.schedules(cursor, owner))
            yield from page.schedules
            cursor = page.next_cursor
            if cursor is None:
                return

    def schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """As `Client.schedule`."""
        return self._send(calls.schedule(name, owner))

    def put_schedule(
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
        """As `Client.put_schedule`."""
        return self._send(
            calls.put_schedule(name, task, input, owner, cron=cron, timezone=timezone, version=version, options=options)
        )

    def pause_schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """As `Client.pause_schedule`."""
        return self._send(calls.change_schedule(name, "pause", owner))

    def resume_schedule(self, name: str, *, owner: str | None = None) -> Schedule:
        """As `Client.resume_schedule`."""
        return self._send(calls.change_schedule(name, "resume", owner))

    def run_schedule(self, name: str, *, owner: str | None = None) -> SyncJobHandle:
        """As `Client.run_schedule`."""
        return SyncJobHandle(self, (self._send(calls.run_schedule(name, owner))).id)

    def delete_schedule(self, name: str, *, owner: str | None = None) -> None:
        """As `Client.delete_schedule`."""
        self._send(calls.delete_schedule(name, owner))

    def next_ticks(self, name: str, *, count: int = 10, owner: str | None = None) -> list[datetime]:
        """As `Client.next_ticks`."""
        return self._send(calls.next_ticks(name, count, owner))

    def _send(self, call: Call[T]) -> T:
        sent = 0
        while True:
            try:
                with call.request(self._http) as request:
                    response = self._http.send(request, follow_redirects=call.follow_redirects)
                answer = call.answer(response)
                self._met = True
                return answer
            except (httpx2.RequestError, Rejected) as error:
                sent += 1
                pause = call.pause_before_resend(error, sent, self.base_url)
            time.sleep(pause)

    def _download(self, download: Download) -> None:
        call = calls.download(download.file, self.base_url)
        sent = 0
        while True:
            before = download.at
            try:
                with self._http.stream("GET", call.url, headers=download.headers, follow_redirects=True) as response:
                    if not response.is_success:
                        response.read()
                    call.answer(response)
                    download.begin(response)
                    for piece in response.iter_bytes():
                        download.take(piece)
                if download.is_whole:
                    return
                raise httpx2.RemoteProtocolError("the download ended too early")
            except (httpx2.RequestError, Rejected) as error:
                sent = 1 if download.at > before else sent + 1
                pause = call.pause_before_resend(error, sent, self.base_url)
            time.sleep(pause)

    def _follow(self, job_id: str, after: str | None = None, path: str | None = None) -> Following:
        return Following(job_id, after, self._policy, met=self._met, path=path)

    def _events(self, following: Following, alarm: Alarm, *, while_mute: bool = True) -> Generator[Event]:
        while not following.ended and (while_mute or not following.mute):
            failure: Exception | None = None
            try:
                with (
                    self._http.sse(
                        following.path,
                        headers=following.headers,
                        timeout=following.timeout(alarm.left),
                        max_event_size=None,
                    ) as source,
                    alarm.over(source.response),
                ):
                    if source.response.is_error:
                        source.response.read()
                    if following.opened(source.response):
                        for frame in source:
                            if (event := following.take(frame)) is not None:
                                yield event
                            if following.ended:
                                return
            except (httpx2.RequestError, Unavailable) as error:
                failure = error
            if not following.ended:
                alarm.check()
                alarm.sleep(following.pause(failure))


class SyncJobHandle:
    """`JobHandle` for code that does not await."""

    def __init__(self, client: SyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"SyncJobHandle({self.id!r})"

    def get(self) -> Job:
        """As `JobHandle.get`."""
        return self._client._send(calls.get(self.id))

    def events(self, after: str | None = None) -> Generator[Event]:
        """As `JobHandle.events`. The connection is closed when the loop is left and the generator let go."""
        return self._client._events(self._client._follow(self.id, after), Alarm(None))

    def wait(self, timeout: float | None = None) -> Job:
        """As `JobHandle.wait`."""
        try:
            with Alarm(timeout) as alarm:
                return self._wait(alarm)
        except TimeoutError as error:
            raise StillRunning(self.id, timeout or 0.0) from error

    def _wait(self, alarm: Alarm) -> Job:
        with closing(self._client._events(self._client._follow(self.id), alarm, while_mute=False)) as events:
            for event in events:
                if event.event == "done" and event.job is not None:
                    return event.job
                alarm.check()
        while True:  # a 204, which a look at the job confirms, or a mute stream, which looks replace
            job = self._client._send(calls.get(self.id).patient())
            if job.done:
                return job
            alarm.sleep(calls.LOOK_SECONDS)

    @overload
    def result(self, timeout: float | None = None) -> JsonValue | bytes: ...

    @overload
    def result(self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T]) -> T: ...

    def result(
        self, timeout: float | None = None, *, type: type[T] | TypeAdapter[T] | None = None
    ) -> T | JsonValue | bytes:
        """As `JobHandle.result`."""
        found: T | JsonValue | bytes = self._client._send(calls.result(self.wait(timeout), self._client.base_url, type))
        return found

    def files(self) -> list[JobFileInfo]:
        """As `JobHandle.files`."""
        return self._client._send(calls.files(self.id))

    def download(
        self, name: str | None = None, to: Path | str | None = None, *, on_progress: OnProgress | None = None
    ) -> Path:
        """As `JobHandle.download`."""
        file = chosen(self.files(), name)
        path = place_for(file, to)
        with Download.to(path, file, on_progress) as download:
            self._client._download(download)
        return path

    def cancel(self) -> Job:
        """As `JobHandle.cancel`."""
        return self._client._send(calls.cancel(self.id))

    def retry(self) -> Job:
        """As `JobHandle.retry`."""
        return self._client._send(calls.retry(self.id))

    def purge(self) -> None:
        """As `JobHandle.purge`."""
        self._client._send(calls.purge(self.id))


class SyncBatchHandle(Sequence[SyncJobHandle]):
    """`BatchHandle` for code that does not await."""

    def __init__(self, client: SyncClient, batch_id: str, jobs: Sequence[SyncJobHandle] = ()) -> None:
        self._client = client
        self._jobs = jobs
        self.id = batch_id

    def __repr__(self) -> str:
        return f"SyncBatchHandle({self.id!r})"

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, at: int) -> SyncJobHandle: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[SyncJobHandle]: ...

    def __getitem__(self, at: int | slice) -> SyncJobHandle | Sequence[SyncJobHandle]:
        return self._jobs[at]

    def get(self) -> Batch:
        """As `BatchHandle.get`."""
        return self._client._send(calls.batch(self.id))

    def events(self, after: str | None = None) -> Generator[Event]:
        """As `BatchHandle.events`."""
        return self._client._events(self._client._follow(self.id, after, calls.batch_path(self.id)), Alarm(None))

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """As `BatchHandle.jobs`."""
        pages = calls.batch_pages(self.id, status=status)
        while pages.next is not None:
            yield from pages.take(self._client._send(pages.next))

    def wait(self, timeout: float | None = None) -> Batch:
        """As `BatchHandle.wait`."""
        try:
            with Alarm(timeout) as alarm:
                return self._wait(alarm)
        except TimeoutError as error:
            raise StillRunning(self.id, timeout or 0.0) from error

    def _wait(self, alarm: Alarm) -> Batch:
        following = self._client._follow(self.id, None, calls.batch_path(self.id))
        with closing(self._client._events(following, alarm, while_mute=False)) as events:
            for event in events:
                if event.event == "done" and event.batch is not None:
                    return event.batch
                alarm.check()
        while True:
            batch = self._client._send(calls.batch(self.id).patient())
            if batch.done:
                return batch
            alarm.sleep(calls.LOOK_SECONDS)

    def cancel(self) -> Batch:
        """As `BatchHandle.cancel`."""
        return self._client._send(calls.cancel_batch(self.id))


class Alarm:
    """Ends a read that waits when the time is over. Rings once, after `seconds`; never for None.

    A blocking read has a timeout of its own, but a stream's pings begin it anew, so it cannot keep an appointment. When
    the alarm rings, a thread shuts the socket down, and the read ends like that of a connection that was cut.
    """

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._timer = None if seconds is None else threading.Timer(max(seconds, 0.0), self._ring)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def left(self) -> float | None:
        """Seconds until it rings; None for never."""
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raises TimeoutError when the time is over."""
        if self.left == 0.0:
            raise TimeoutError

    def sleep(self, seconds: float) -> None:
        """For so long, or until the time is over: then it raises TimeoutError."""
        time.sleep(seconds if self.left is None else min(seconds, self.left))
        self.check()

    @contextmanager
    def over(self, response: httpx2.Response) -> Iterator[None]:
        """Watch over the reads of this response."""
        with self._lock:
            self._socket = response.extensions["network_stream"].get_extra_info("socket")
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._socket = None

    def _ring(self) -> None:
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # That of the plain socket: the one of TLS would take its state from under the reader.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
