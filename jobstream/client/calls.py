"""One request and its answer: how each is written and read, without sending it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO, Generic, Literal, Required, TypedDict, TypeVar
from urllib.parse import quote

import httpx2
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from jobstream.batch import Batch
from jobstream.client.errors import (
    JobCancelled,
    JobFailed,
    Rejected,
    Unavailable,
    UnexpectedResult,
    Unreachable,
    checked,
    unreachable,
)
from jobstream.client.transfer import JobFileInfo, Upload, can_be_sent_again, opened
from jobstream.job import Job, JobStatus
from jobstream.schedule import Schedule
from jobstream.traces import current

DEFAULT_URL = "http://127.0.0.1:8000"

KEYED_RESENDS = 3
"""How often a submit that carries an idempotency key is sent again after a cut, a 503, or while the first is read."""
PATIENT_RESENDS = 7
"""How often a question is asked again that follows a stream, so that the service is known to be there: over 20 s."""
LONGEST_RESEND_PAUSE = 5.0
LOOK_SECONDS = 2.0
"""Between two looks at a job whose stream does not come through."""
PAGE_JOBS = 200

T = TypeVar("T")
JSON = TypeAdapter[JsonValue](JsonValue)


class RunOptions(TypedDict, total=False):
    """How a job is to be run. `delay`, `timeout` and `ttl` are seconds."""

    delay: float | None
    run_at: datetime | None
    priority: int | None
    queue: str | None
    callback_url: str | None
    tags: Sequence[str]
    timeout: float | None
    ttl: float | None


class SubmitOptions(RunOptions, total=False):
    """`RunOptions`; ids of jobs or batches that must have succeeded before it runs (`after`); and the key by which the
    service knows a submit that is sent again."""

    after: Sequence[str]
    idempotency_key: str | None


class BatchItem(RunOptions, total=False):
    """A job of a batch: its task (needed), its input, and how it is to be run; `after` may also have numbers: of jobs
    of the batch that come before it, the first is 0."""

    after: Sequence[str | int]
    task: Required[str]
    input: Mapping[str, object] | BaseModel


class BulkFilter(TypedDict, total=False):
    """Which jobs are meant: those that fit all of it. `all=True` is needed when nothing else is given."""

    status: str | None
    task: str | None
    tag: str | None
    q: str | None
    all: bool


class ScheduleOptions(TypedDict, total=False):
    """How the jobs of a schedule are run. `timeout` and `ttl` are seconds."""

    priority: int | None
    queue: str | None
    callback_url: str | None
    tags: Sequence[str]
    timeout: float | None
    ttl: float | None


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


class Page(BaseModel):
    """Some of the jobs, and where the rest begins."""

    jobs: list[Job]
    next_cursor: str | None = None


class SchedulePage(BaseModel):
    """Some of the schedules, and where the rest begins."""

    schedules: list[Schedule]
    next_cursor: str | None = None


class _Ticks(BaseModel):
    ticks: list[datetime]


class _Catalogue(BaseModel):
    tasks: list[TaskInfo]


class _Files(BaseModel):
    files: list[JobFileInfo]


class _BatchJob(BaseModel):
    id: str


class StoredBatch(BaseModel):
    """A batch that was handed in."""

    id: str
    jobs: list[_BatchJob]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    url: str
    read: Callable[[httpx2.Response], T]
    params: httpx2.QueryParams = field(default_factory=httpx2.QueryParams)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """JSON; with files its members become fields of the form."""
    files: Mapping[str, Sequence[Upload]] = field(default_factory=dict)
    follow_redirects: bool = False
    resends: int = 0

    def patient(self) -> Call[T]:
        """The same, for a service that was there a moment ago and may be restarting."""
        return replace(self, resends=PATIENT_RESENDS)

    @contextmanager
    def request(self, client: httpx2.Client | httpx2.AsyncClient) -> Iterator[httpx2.Request]:
        """To be sent within the block, while its files are open. Raises OSError for a file that cannot be read."""
        headers = {**self.headers, **current()}  # the service continues the trace
        if not any(self.files.values()):
            typed = {**headers, "Content-Type": "application/json"} if self.body is not None else headers
            yield client.build_request(self.method, self.url, params=self.params, headers=typed, content=self.body)
            return
        with ExitStack() as stack:
            parts: list[tuple[str, tuple[str, BinaryIO]]] = [
                (name, stack.enter_context(opened(upload)))
                for name, uploads in self.files.items()
                for upload in uploads
            ]
            form = _form(self.body or b"{}")
            yield client.build_request(
                self.method, self.url, params=self.params, headers=headers, data=form, files=parts
            )

    def answer(self, response: httpx2.Response) -> T:
        """What the response, which has been read, says. Raises the tree of `Rejected`, and Unreachable for babble."""
        return self.read(checked(response))

    def pause_before_resend(self, error: Exception, sent: int, base_url: str) -> float:
        """Seconds to wait before it is sent again, having been sent `sent` times; raises what the caller is to see."""
        if sent <= self.resends and _passes(error):
            asked = error.retry_after if isinstance(error, Rejected) else None
            return min(asked or 0.2 * 2 ** (sent - 1), LONGEST_RESEND_PAUSE)
        if isinstance(error, httpx2.RequestError):
            raise unreachable(base_url, error) from error
        raise error


def _passes(error: Exception) -> bool:
    """Whether the same request may have another answer in a moment."""
    if isinstance(error, Rejected):
        return isinstance(error, Unavailable) or error.problem.code == "idempotency-in-flight"
    return True


class ConnectionOptions(TypedDict):
    """What both kinds of httpx2 client are made with."""

    base_url: str
    headers: dict[str, str]
    timeout: float
    limits: httpx2.Limits
    mounts: dict[str, Any]


def connection_options(base_url: str, token: str | None, timeout: float) -> ConnectionOptions:
    """Streams hold a connection each, so there is no limit; loopback is never reached by way of a proxy."""
    return {
        "base_url": base_url,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": timeout,
        "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        "mounts": {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},
    }


def submit(
    task: str,
    input: Mapping[str, object] | BaseModel | None,
    files: Sequence[Upload] | Mapping[str, Sequence[Upload]],
    *,
    idempotency_key: str | None = None,
    run_at: datetime | None = None,
    tags: Sequence[str] = (),
    delay: float | None = None,
    priority: int | None = None,
    queue: str | None = None,
    callback_url: str | None = None,
    after: Sequence[str] = (),
    timeout: float | None = None,
    ttl: float | None = None,
) -> Call[Job]:
    """Hand in a job. A dataclass, a date or a nested model in `input` become JSON the way pydantic writes them."""
    named = files if isinstance(files, Mapping) else {"files": files}
    again = all(can_be_sent_again(upload) for uploads in named.values() for upload in uploads)
    options: dict[str, str | float | Sequence[str] | None] = {
        "delay": delay,
        "run_at": run_at.isoformat() if run_at else None,
        "priority": priority,
        "queue": queue,
        "callback_url": callback_url,
        "after": after or None,
        "tags": tags or None,
        "timeout": timeout,
        "ttl": ttl,
    }
    return Call(
        "POST",
        f"/{_segment(task)}",
        _job,
        params=httpx2.QueryParams({name: value for name, value in options.items() if value is not None}),
        headers=_keyed(idempotency_key),
        body=pydantic_core.to_json({} if input is None else input),
        files=named,
        resends=KEYED_RESENDS if idempotency_key and again else 0,
    )


def submit_batch(items: Sequence[BatchItem], *, idempotency_key: str | None) -> Call[StoredBatch]:
    """Hand in many jobs, all or none."""
    body = [{name: value for name, value in item.items() if value is not None} for item in items]
    return Call(
        "POST",
        "/jobs/batch",
        lambda response: _parsed(StoredBatch, response),
        headers=_keyed(idempotency_key),
        body=pydantic_core.to_json(body),
        resends=KEYED_RESENDS if idempotency_key else 0,
    )


def batch(batch_id: str) -> Call[Batch]:
    """The batch as it is now."""
    return Call("GET", batch_path(batch_id), lambda response: _parsed(Batch, response))


def cancel_batch(batch_id: str) -> Call[Batch]:
    """Ask all its jobs to stop."""
    return Call("POST", f"{batch_path(batch_id)}/cancel", lambda response: _parsed(Batch, response))


def get(job_id: str) -> Call[Job]:
    """The job as it is now."""
    return Call("GET", job_path(job_id), _job)


def cancel(job_id: str) -> Call[Job]:
    """Ask the job to stop."""
    return Call("POST", f"{job_path(job_id)}/cancel", _job)


def retry(job_id: str) -> Call[Job]:
    """Run it again."""
    return Call("POST", f"{job_path(job_id)}/retry", _job)


def change_all(order: Literal["cancel", "retry"], wanted: BulkFilter) -> Call[Job]:
    """Hand in the job that cancels or retries all that match. Sent again when cut: it changes nothing twice."""
    given = {name: "true" if value is True else str(value) for name, value in wanted.items() if value}
    headers = _keyed(uuid.uuid4().hex)
    return Call(
        "POST", f"/jobs/{order}", _job, params=httpx2.QueryParams(given), headers=headers, resends=KEYED_RESENDS
    )


def purge(job_id: str) -> Call[None]:
    """Forget it."""
    return Call("DELETE", job_path(job_id), lambda _: None)


def files(job_id: str) -> Call[list[JobFileInfo]]:
    """The files of the job: its uploads, and those that its result names."""
    return Call("GET", f"{job_path(job_id)}/files", lambda response: _parsed(_Files, response).files)


def download(file: JobFileInfo, base_url: str) -> Call[None]:
    """A file. Its link begins at the service's root, which need not be the base URL's."""
    return Call("GET", str(httpx2.URL(base_url).join(file.url)), lambda _: None).patient()


def tasks() -> Call[list[TaskInfo]]:
    """The catalogue."""
    return Call("GET", "/tasks", lambda response: _parsed(_Catalogue, response).tasks)


def schedules(cursor: str | None, owner: str | None) -> Call[SchedulePage]:
    """A page of schedules."""
    given = {"cursor": cursor, "owner": owner}
    params = httpx2.QueryParams({name: value for name, value in given.items() if value is not None})
    return Call("GET", "/schedules", lambda response: _parsed(SchedulePage, response), params)


def schedule(name: str, owner: str | None) -> Call[Schedule]:
    """The schedule as it is now."""
    return _of_schedule("GET", name, "", _schedule, owner)


def put_schedule(
    name: str,
    task: str,
    input: Mapping[str, object] | BaseModel | None,
    owner: str | None,
    *,
    cron: str,
    timezone: str,
    version: int | None,
    options: ScheduleOptions,
) -> Call[Schedule]:
    """Make it, or give it another definition. Sent again when cut: the second time changes nothing."""
    said = {"task": task, "cron": cron, "timezone": timezone, "input": {} if input is None else input}
    body = pydantic_core.to_json(said | {key: value for key, value in options.items() if value is not None})
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    resends = KEYED_RESENDS if version is None else 0
    return replace(
        _of_schedule("PUT", name, "", _schedule, owner),
        body=body,
        headers={"Accept": "application/json", **headers},
        resends=resends,
    )


def change_schedule(name: str, order: Literal["pause", "resume"], owner: str | None) -> Call[Schedule]:
    """Pause or resume it."""
    return replace(_of_schedule("POST", name, f"/{order}", _schedule, owner), resends=KEYED_RESENDS)


def run_schedule(name: str, owner: str | None) -> Call[Job]:
    """Run it once. Sent again when cut, under a key of its own."""
    call = _of_schedule("POST", name, "/run", _job, owner)
    return replace(call, headers=_keyed(uuid.uuid4().hex), resends=KEYED_RESENDS)


def delete_schedule(name: str, owner: str | None) -> Call[None]:
    """Forget it."""
    return _of_schedule("DELETE", name, "", lambda _: None, owner)


def next_ticks(name: str, count: int, owner: str | None) -> Call[list[datetime]]:
    """When it is due next."""
    call = _of_schedule("GET", name, "/next", lambda response: _parsed(_Ticks, response).ticks, owner)
    return replace(call, params=call.params.set("count", str(count)))


def _of_schedule(method: str, name: str, rest: str, read: Callable[[httpx2.Response], T], owner: str | None) -> Call[T]:
    params = httpx2.QueryParams({} if owner is None else {"owner": owner})
    return Call(method, f"/schedules/{_segment(name)}{rest}", read, params)


@dataclass
class Pages:
    """Walks through the list: ask for `next`, `take` the answer, until `next` is None."""

    filter: dict[str, str]
    left: int | None
    path: str = "/jobs"

    def __post_init__(self) -> None:
        self.next: Call[Page] | None = self._call(None) if self.left is None or self.left > 0 else None

    def take(self, page: Page) -> list[Job]:
        """The jobs of this page that are wanted."""
        jobs = page.jobs[: self.left]
        if self.left is not None:
            self.left -= len(jobs)
        self.next = self._call(page.next_cursor) if page.next_cursor and self.left != 0 else None
        return jobs

    def _call(self, cursor: str | None) -> Call[Page]:
        limit = str(min(self.left or PAGE_JOBS, PAGE_JOBS))
        params = self.filter | {"limit": limit} | ({"cursor": cursor} if cursor else {})
        return Call("GET", self.path, lambda response: _parsed(Page, response), httpx2.QueryParams(params))


def pages(*, status: str | None, task: str | None, tag: str | None, limit: int | None) -> Pages:
    """Jobs that fit all of this, newest first, at most `limit`."""
    wanted = {"status": status, "task": task, "tag": tag}
    return Pages({name: value for name, value in wanted.items() if value}, limit)


def batch_pages(batch_id: str, *, status: str | None) -> Pages:
    """The jobs of a batch, in its order."""
    return Pages({"status": status} if status else {}, None, f"{batch_path(batch_id)}/jobs")


def result(job: Job, base_url: str, kind: type[T] | TypeAdapter[T] | None) -> Call[Any]:
    """What a job that is done has returned, as `kind` (None: JSON or bytes).

    Raises JobFailed or JobCancelled for one that has returned nothing.
    """
    if job.status == JobStatus.FAILED:
        raise JobFailed(job)
    if job.status == JobStatus.CANCELLED:
        raise JobCancelled(job)

    def read(response: httpx2.Response) -> Any:
        is_json = response.headers.get("content-type", "").partition(";")[0] == "application/json"
        if kind is None:
            return JSON.validate_json(response.content) if is_json else response.content
        adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter[T](kind)
        try:
            return adapter.validate_json(response.content) if is_json else adapter.validate_python(response.content)
        except ValidationError as error:
            raise UnexpectedResult(f"the result of job {job.id} is not what was asked for: {error}") from error

    # The link begins at the service's root, which need not be the base URL's.
    url = str(httpx2.URL(base_url).join(job.links.result))
    return Call("GET", url, read, follow_redirects=True).patient()


def job_path(job_id: str) -> str:
    """The monitor of a job; the id cannot leave its segment."""
    return f"/jobs/{_segment(job_id)}"


def batch_path(batch_id: str) -> str:
    """The URL of a batch, as `job_path`."""
    return f"/batches/{_segment(batch_id)}"


Model = TypeVar("Model", bound=BaseModel)


def _parsed(model: type[Model], response: httpx2.Response) -> Model:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise Unreachable(f"what answers at {response.url} does not speak this protocol") from error


def _job(response: httpx2.Response) -> Job:
    return _parsed(Job, response)


def _schedule(response: httpx2.Response) -> Schedule:
    return _parsed(Schedule, response)


def _keyed(idempotency_key: str | None) -> dict[str, str]:
    key = {"Idempotency-Key": f'"{idempotency_key}"'} if idempotency_key else {}
    return {"Accept": "application/json", **key}


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
