"""The HTTP client: submit a job, keep its handle, follow its events across cuts, fetch its result.

ClientError
├── Unreachable          no answer: nothing listens there, or the connection broke
├── Rejected             the service answered with a problem (RFC 9457)
│   ├── Unauthorized     401, 403
│   ├── NotFound         404, 410
│   └── Unavailable      502, 503, 504: away for the moment
├── JobFailed            the job has ended without a result; `job.error` says why
├── JobCancelled         the job was cancelled
└── StillRunning         the time given to `result` is over; the job goes on (also a TimeoutError)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx2
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from jobstream.job import Job, JobStatus

DEFAULT_URL = "http://127.0.0.1:8000"

SILENCE = 45.0
"""Seconds without a byte after which a stream counts as dead: the service pings every 15 s."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts to come back, at most."""
RESENDS = 2
"""How often a submit that carries an idempotency key is sent again after a cut."""

JSON = TypeAdapter[JsonValue](JsonValue)


class FieldProblem(BaseModel):
    """One thing wrong with the request: a JSON pointer and a sentence."""

    pointer: str = ""
    detail: str = ""


class Problem(BaseModel):
    """An error on the wire (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    instance: str | None = None
    code: str = ""
    errors: list[FieldProblem] = Field(default_factory=list)

    def __str__(self) -> str:
        said = self.detail or self.title or f"HTTP {self.status}"
        unsaid = [error for error in self.errors if error.detail not in said]
        fields = "; ".join(f"{error.pointer or 'input'}: {error.detail}" for error in unsaid)
        return f"{said} ({fields})" if fields else said


class ClientError(Exception):
    """Something went wrong between this client and the service."""


class Unreachable(ClientError):
    """No answer: nothing listens there, or the connection broke."""


class Rejected(ClientError):
    """The service said no; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Unauthorized(Rejected):
    """The token is missing, wrong or not allowed to do that."""


class NotFound(Rejected):
    """There is no such job or task, or it is gone."""


class Unavailable(Rejected):
    """The service is away, full or draining for the moment."""


class JobFailed(ClientError):
    """The job has failed; `job.error` says why."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.error.detail or job.error.title if job.error else "the job failed")
        self.job = job


class JobCancelled(ClientError):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was cancelled")
        self.job = job


class StillRunning(ClientError, TimeoutError):
    """The time to wait is over; the job goes on."""


class TaskInfo(BaseModel):
    """A task of the catalogue."""

    model_config = ConfigDict(extra="allow")

    name: str
    summary: str = ""
    queue: str
    workers: int = Field(description="Workers alive that would run it")
    file_fields: list[str] = Field(default_factory=list)
    input_schema: dict[str, JsonValue]
    output_schema: dict[str, JsonValue]


@dataclass(frozen=True)
class Event:
    """One change of a job, as the stream tells it."""

    id: str
    """Opaque; give it to `events(after=…)` to go on from here. Empty before the first durable event."""
    event: str
    """snapshot, status, progress, log, chunk or done."""
    data: JsonValue

    @property
    def version(self) -> int | None:
        """The job's version after this change; None before the first durable event."""
        version = self.id.rpartition("-")[2]
        return int(version) if version.isdecimal() else None

    @property
    def job(self) -> Job | None:
        """The whole job, which `snapshot` and `done` carry; None for the others."""
        return Job.model_validate(self.data) if self.event in ("snapshot", "done") else None


class Client:
    """A connection pool to one service. Use it with `async with`.

    `token`: sent as a bearer token. `timeout`: seconds to wait for an answer. `patience`: seconds a stream that has
    been cut keeps trying to come back before it raises `Unreachable`.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, *, token: str | None = None, timeout: float = 30.0, patience: float = 60.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.patience = patience
        try:
            self.http = httpx2.AsyncClient(
                base_url=self.base_url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=timeout,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),  # a stream holds one each
                mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},  # never by a proxy
            )
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{base_url!r} is not a URL: {error}") from None

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.__aexit__(kind, error, trace)

    async def submit(
        self,
        task: str,
        input: Mapping[str, object] | BaseModel | None = None,
        files: Sequence[Path] | Mapping[str, Sequence[Path]] = (),
        *,
        idempotency_key: str | None = None,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        callback_url: str | None = None,
        tags: Sequence[str] = (),
        timeout: float | None = None,
        ttl: float | None = None,
    ) -> JobHandle:
        """Hand in a job and return its handle as soon as the service has stored it.

        `files` are uploaded to the field `files`, or to the fields that the mapping names, and are read from disk as
        they are sent. With an `idempotency_key` a submit
        that was cut is sent again, and never makes a second job. `delay`, `timeout` and `ttl` are seconds. Raises
        `Rejected` (422 with `problem.errors` for an input that does not fit), `NotFound` for an unknown task,
        `Unreachable`, and OSError for a file that cannot be read.
        """
        options: dict[str, str | float | Sequence[str] | None] = {
            "delay": delay,
            "run_at": run_at.isoformat() if run_at else None,
            "priority": priority,
            "queue": queue,
            "callback_url": callback_url,
            "tags": tags or None,
            "timeout": timeout,
            "ttl": ttl,
        }
        params = httpx2.QueryParams({name: value for name, value in options.items() if value is not None})
        # A dataclass, a date or a nested model in the mapping become JSON the way pydantic writes them.
        body = pydantic_core.to_json({} if input is None else input)
        headers = {"Accept": "application/json"}
        if idempotency_key:
            headers["Idempotency-Key"] = f'"{idempotency_key}"'
        fields = files if isinstance(files, Mapping) else {"files": files}
        attempts = 1 + (RESENDS if idempotency_key else 0)
        for attempt in range(1, attempts + 1):
            try:
                response = await self._post(f"/{_segment(task)}", body, fields, params=params, headers=headers)
                break
            except Unreachable:
                if attempt == attempts:
                    raise
                await asyncio.sleep(0.2 * attempt)
        return JobHandle(self, _job(response).id)

    def job(self, job_id: str) -> JobHandle:
        """The handle of a job whose id is known. Asks nobody."""
        return JobHandle(self, job_id)

    async def list(
        self, *, status: str | None = None, task: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Job]:
        """Jobs, newest first, page by page; at most `limit` of them."""
        wanted = {"status": status, "task": task, "tag": tag}
        params = {name: value for name, value in wanted.items() if value}
        left = limit
        while left is None or left > 0:
            params["limit"] = str(min(left or 200, 200))
            page = _parsed(_Page, await self.request("GET", "/jobs", params=params))
            for job in page.jobs[:left]:
                yield job
            if not page.next_cursor:
                return
            params["cursor"] = page.next_cursor
            left = None if left is None else left - len(page.jobs)

    async def tasks(self) -> Sequence[TaskInfo]:
        """The catalogue: what can be submitted, and how many workers would run it."""
        return _parsed(_Catalogue, await self.request("GET", "/tasks")).tasks

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | httpx2.QueryParams | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        follow_redirects: bool = False,
    ) -> httpx2.Response:
        """One request; raises `Unreachable` and the tree of `Rejected` for what is not a success."""
        try:
            response = await self.http.request(
                method, url, params=params, headers=headers, content=content, follow_redirects=follow_redirects
            )
        except httpx2.RequestError as error:
            raise Unreachable(self._no_answer(error)) from error
        return _checked(response)

    async def _post(
        self,
        url: str,
        body: bytes,
        files: Mapping[str, Sequence[Path]],
        *,
        params: httpx2.QueryParams,
        headers: Mapping[str, str],
    ) -> httpx2.Response:
        if not any(files.values()):
            typed = {**headers, "Content-Type": "application/json"}
            return await self.request("POST", url, params=params, headers=typed, content=body)
        with ExitStack() as opened:
            parts: list[tuple[str, tuple[str, BinaryIO]]] = [
                (field, (path.name, opened.enter_context(path.open("rb")))) for field in files for path in files[field]
            ]
            try:
                response = await self.http.post(url, params=params, headers=headers, data=_form(body), files=parts)
            except httpx2.RequestError as error:
                raise Unreachable(self._no_answer(error)) from error
        return _checked(response)

    def _no_answer(self, error: httpx2.RequestError) -> str:
        said = str(error) or type(error).__name__
        return f"no answer from {self.base_url}: {said}"


class JobHandle:
    """A job on the service. Made by `Client.submit` and `Client.job`; holds nothing but the id."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id
        self._path = f"/jobs/{_segment(job_id)}"

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    async def refresh(self) -> Job:
        """The job as it is now. Raises `NotFound`."""
        return _job(await self._client.request("GET", self._path))

    async def events(self, after: str | None = None) -> AsyncGenerator[Event]:
        """Every change, from a snapshot (or from just behind the event `after`) to `done`.

        A cut is healed here: the stream comes back with `Last-Event-ID`, so nothing is lost and nothing comes twice.
        Raises `NotFound`, `Unauthorized`, and `Unreachable` when the service was never there, or stays away for
        longer than the client's patience.
        """
        last_id, pause, misses = after or "", 2.0, 0
        clock = asyncio.get_running_loop().time
        away_since: float | None = None
        connected = False
        while True:
            try:
                async with self._client.http.sse(
                    f"{self._path}/events",
                    headers={"Last-Event-ID": last_id} if last_id else {},
                    timeout=httpx2.Timeout(30.0, read=SILENCE),
                    max_event_size=None,  # our own service; a chunk may be as large as it likes
                ) as source:
                    if source.response.status_code == HTTPStatus.NO_CONTENT:
                        return
                    if not source.response.is_success:
                        await source.response.aread()
                        _checked(source.response)
                    connected = True
                    async for frame in source:
                        pause = pause if frame.retry is None else frame.retry / 1000
                        last_id = frame.id or last_id
                        if not frame.data:  # a block of `retry:` or `id:` alone
                            continue
                        misses, away_since = 0, None
                        yield Event(last_id, frame.event, JSON.validate_json(frame.data))
                        if frame.event == "done":
                            return
            except httpx2.SSEError as error:
                raise Unreachable(f"what answers at {self._client.base_url} does not stream events: {error}") from error
            except (httpx2.TransportError, Unavailable) as error:
                away_since = clock() if away_since is None else away_since
                if not connected or clock() - away_since > self._client.patience:
                    if isinstance(error, Unavailable):
                        raise
                    raise Unreachable(self._client._no_answer(error)) from error
            misses += 1
            await asyncio.sleep(min(pause * 2 ** (misses - 1), LONGEST_PAUSE) * random.uniform(0.8, 1.2))

    async def wait(self, timeout: float | None = None) -> Job:
        """The job once it is done, whatever its end. Raises `StillRunning` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                async with aclosing(self.events()) as events:
                    async for _ in events:
                        pass
                return await self.refresh()
        except TimeoutError as error:
            raise StillRunning(f"job {self.id} is not done after {timeout:g} s") from error

    async def result(self, timeout: float | None = None) -> JsonValue | bytes:
        """The result once there is one: what the task returned, or the bytes of a file result.

        Raises `JobFailed`, `JobCancelled`, and `StillRunning` when `timeout` seconds are over.
        """
        job = await self.wait(timeout)
        if job.status == JobStatus.FAILED:
            raise JobFailed(job)
        if job.status == JobStatus.CANCELLED:
            raise JobCancelled(job)
        # The link begins at the service's root, which need not be the base URL's.
        url = str(httpx2.URL(self._client.base_url).join(job.links.result))
        response = await self._client.request("GET", url, follow_redirects=True)
        if response.headers.get("content-type", "").partition(";")[0] == "application/json":
            return JSON.validate_json(response.content)
        return response.content

    async def cancel(self) -> Job:
        """Ask the job to stop; its record stays. A job that is done already is returned unchanged."""
        return _job(await self._client.request("POST", f"{self._path}/cancel"))

    async def retry(self) -> Job:
        """Run a failed or cancelled job again, under the same id. Raises Rejected when it is in no state for that."""
        return _job(await self._client.request("POST", f"{self._path}/retry"))

    async def delete(self) -> None:
        """Purge the job and its record; a running one is stopped first."""
        await self._client.request("DELETE", self._path)


class _Catalogue(BaseModel):
    tasks: list[TaskInfo]


class _Page(BaseModel):
    jobs: list[Job]
    next_cursor: str | None = None


Model = TypeVar("Model", bound=BaseModel)


def _parsed(model: type[Model], response: httpx2.Response) -> Model:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise Unreachable(f"what answers at {response.url} does not speak this protocol") from error


def _job(response: httpx2.Response) -> Job:
    return _parsed(Job, response)


def _segment(text: str) -> str:
    return quote(text, safe="")


def _form(body: bytes) -> dict[str, str | list[str]]:
    """The other fields of a multipart form: strings as they are, a list as a repeated field, the rest as JSON."""
    fields = TypeAdapter(dict[str, JsonValue]).validate_json(body)
    return {
        name: [_text(item) for item in value] if isinstance(value, list) else _text(value)
        for name, value in fields.items()
    }


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else JSON.dump_json(value).decode()


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.is_success or response.has_redirect_location:  # 303 is a task's other way to say "accepted"
        return response
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(title=f"HTTP {status} {response.reason_phrase}".strip(), detail=response.text[:200])
    problem.status = problem.status or status
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise Unauthorized(problem)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise NotFound(problem)
    if status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
        raise Unavailable(problem)
    raise Rejected(problem)
