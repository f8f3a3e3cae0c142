"""BackgroundTasks that are jobs: a drop-in for FastAPI's, from any depth of an app; imported as `jobstream.background`.

from jobstream.background import BackgroundTasks

@app.post("/orders")
async def order(email: str, background_tasks: BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(send_mail, email, subject="Thank you")
    return {"status": "accepted"}

What is added while a request is answered is handed over together: when the endpoint has returned, before a byte of the
answer is sent, in one round trip. An endpoint that raises hands over nothing.

FastAPI closes the two exit stacks of a request when the endpoint has returned and when the answer was sent. They are
what a dependency with `yield` runs in; we stand on them by their names in the scope, since such a dependency itself
could not be used by others of a longer life.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, ParamSpec
from weakref import WeakKeyDictionary

from fastapi import Depends, UploadFile
from pydantic import AnyHttpUrl, Field
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.datastructures import UploadFile as StarletteUploadFile
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from jobstream.call import Call, Callee, CallSettings, NotCarried, Upload, is_allowed, task_input
from jobstream.errors import ConfigurationError, JobstreamError, RedisUnavailable, StorageUnavailable, Unauthorized
from jobstream.files import CHUNK_BYTES, FileSettings, FileStore
from jobstream.job import DEFAULT_QUEUE, DEFAULT_TTL, job_ids, new_job_id
from jobstream.queue import TAG, Queue, Submission, SubmitOptions
from jobstream.redis import RedisSettings, RedisSource, UrlSource, is_unavailable
from jobstream.task import Task
from jobstream_api import problems
from jobstream_api.jobs import STATE
from jobstream_api.service import Service

logger = logging.getLogger("jobstream.background")

P = ParamSpec("P")

LINKS = 10
"""Jobs that the answer's `Link` headers name; a client that started more has the first of them."""

_SCOPE = "jobstream.background"
_FUNCTION_STACK, _REQUEST_STACK = "fastapi_function_astack", "fastapi_inner_astack"


class BackgroundSettings(RedisSettings, FileSettings, CallSettings):
    """What an app is told that hands work over, but does not include the router."""

    background_url: AnyHttpUrl | None = Field(
        None,
        description="Where clients reach the service, for the `Operation-Location` of apps that hand over background "
        "tasks and do not include the service's router. Empty: they send none.",
    )


class NotHandedOver(HTTPException):
    """The tasks of a request could not be stored, and none of them was. Answered with a problem; `error` says why."""

    def __init__(self, error: JobstreamError) -> None:
        super().__init__(error.status, error.detail)
        self.error = error


@dataclass(frozen=True)
class _Added:
    """One call, ready to be carried."""

    job_id: str
    task: str
    data: dict[str, Any]
    queue: str = DEFAULT_QUEUE
    ttl: float = DEFAULT_TTL
    max_attempts: int = 1
    tag: str = ""
    callee: Callee | None = None
    uploads: tuple[tuple[Upload, StarletteUploadFile], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, job_id: str) -> _Added:
        """Raises NotCarried, and TypeError for arguments that the function does not take."""
        if isinstance(function, Task):
            data = task_input(function, args, kwargs)
            return cls(job_id, function.name, data, function.queue, function.ttl, function.retry.attempts)
        callee = Callee.of(function)
        modules = _settings().background_modules
        if modules and not is_allowed(function.__module__, modules):
            raise NotCarried(f"{callee.name} is in none of the modules of JOBSTREAM_BACKGROUND: {', '.join(modules)}")
        arguments = callee.bind(args, kwargs)
        uploads = [found for name, value in arguments.items() for found in _uploads(name, value)]
        for upload, _ in uploads:
            arguments.pop(upload.parameter, None)
        call = Call(
            function=callee.reference, arguments=callee.carry(arguments), uploads=[upload for upload, _ in uploads]
        )
        return cls(
            job_id,
            callee.task,
            call.model_dump(mode="json"),
            tag=callee.name[-64:] if TAG.match(callee.name[-64:]) else "",
            callee=callee,
            uploads=tuple(uploads),
        )

    async def submission(self, files: FileStore, owner: str | None) -> Submission:
        """What to submit; uploads are stored by then."""
        stored = [
            await _spool(file, files, self.job_id, number) for number, (_, file) in enumerate(self.uploads, start=1)
        ]
        return Submission(
            self.task,
            self.data | {"files": stored} if stored else self.data,
            SubmitOptions(tags=[self.tag] if self.tag else []),
            self.queue,
            self.ttl,
            self.max_attempts,
            owner=owner,
            files=stored,
        )


class Handover:
    """What one request hands over. Calls may be added from coroutines and threads of the request."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._service = _service(connection)
        self._response: Response | None = None
        self._batch_id = self._last_id = new_job_id()
        self._waiting: list[_Added] = []
        self._here: list[_Added] = []
        """Those that run in this process, after the answer."""
        self._hooked = self._sent = self._over = False
        self._links: list[str] = []
        self._operation: str | None = None

    def add(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Take a call; the id of the job that it will be. Raises what is wrong with it."""
        if self._over:
            raise RuntimeError("the request is over: what is added now would never run")
        if self._service is None and not _Place.inline:
            _source()
        job_id = job_ids(self._last_id, 2)[1]  # those of a batch follow its own
        added = _Added.of(function, args, kwargs, job_id=job_id)
        self._hook()
        self._last_id = job_id
        self._waiting.append(added)
        self._say(job_id)
        return job_id

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What the answer says of the jobs."""
        links = [("Link", f'<{url}>; rel="monitor"') for url in self._links]
        return links if self._operation is None else [("Operation-Location", self._operation), *links]

    def _say(self, job_id: str) -> None:
        """One job is an operation, several are those of their batch."""
        if len(self._links) < LINKS and (url := self._url(f"/jobs/{job_id}")) is not None:
            self._links.append(url)
            if self._response is not None:
                self._response.headers.append("Link", f'<{url}>; rel="monitor"')
        if len(self._waiting) <= 2 and not self._sent:
            self._operation = self._url(f"/jobs/{job_id}" if len(self._waiting) == 1 else f"/batches/{self._batch_id}")
            if self._response is not None and self._operation is not None:
                self._response.headers["Operation-Location"] = self._operation

    def speaks_by(self, response: Response) -> None:
        """FastAPI merges the headers of `response` into the answer. Only for who has no middleware to do it."""
        self._response = response
        self._hook()

    def _hook(self) -> None:
        """Be told when the endpoint has returned, and when the answer was sent."""
        scope = self._connection.scope
        if self._hooked or _FUNCTION_STACK not in scope:
            return
        self._hooked = True
        scope[_REQUEST_STACK].push_async_callback(self.finish)
        scope[_FUNCTION_STACK].push_async_exit(self._endpoint_ended)

    async def _endpoint_ended(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, WebSocketDisconnect):
            await self.send()
        else:
            self.drop()

    async def send(self) -> None:
        """Hand over what was added, all or none. Raises NotHandedOver."""
        waiting, self._waiting = self._waiting, []
        if _Place.inline:
            self._here += waiting
        elif waiting:
            try:
                await self._store(waiting)
            except Exception as error:
                if not (isinstance(error, JobstreamError) or is_unavailable(error)):
                    raise
                self._forget()
                raise self._refusal(error) from error
            self._sent = True
            self._batch_id = self._last_id = new_job_id()

    def drop(self) -> None:
        """The endpoint has raised: its tasks are not run, as FastAPI has it."""
        if not self._waiting:
            return
        logger.info("%d background tasks are dropped: the endpoint has raised", len(self._waiting))
        self._waiting = []
        if not self._sent:
            self._forget()

    def _forget(self) -> None:
        self._links, self._operation = [], None

    async def finish(self) -> None:
        """The answer was sent: hand over what was added meanwhile, by a stream or at the end of a dependency."""
        self._over = True
        late = len(self._waiting)
        try:
            await self.send()
        except Exception:
            logger.exception("%d background tasks are lost: they were added after the answer had begun", late)
        here, self._here = self._here, []
        await _run_here(here)

    async def _store(self, added: Sequence[_Added]) -> None:
        queue, files = await self._storage()
        owner = await self._owner()
        try:
            submissions = [await each.submission(files, owner) for each in added]
            if len(submissions) > 1:
                await queue.submit_batch(submissions, batch_id=self._batch_id, owner=owner)
                return
            (one,) = submissions
            await queue.submit(
                one.task,
                one.data,
                options=one.options,
                default_queue=one.default_queue,
                default_ttl=one.default_ttl,
                max_attempts=one.max_attempts,
                job_id=added[0].job_id,
                owner=one.owner,
            )
        except (
            JobstreamError
        ):  # refused; after any other error the jobs may be there, and workers look for files of none
            for each in added:
                if each.uploads:
                    with contextlib.suppress(StorageUnavailable):  # workers find them, too
                        await asyncio.to_thread(files.remove, each.job_id)
            raise

    async def _storage(self) -> tuple[Queue, FileStore]:
        if self._service is not None:
            return self._service.queue, self._service.files
        opened = await _open_in_this_loop()
        return opened.queue, opened.files

    async def _owner(self) -> str | None:
        """Whose jobs they are: those of the caller, if the app says who that is."""
        if self._service is None or self._service.authenticate is None:
            return None
        try:
            caller = await self._service.authenticate(self._connection)
        except Unauthorized:
            return None
        return caller.tenant if caller is not None else None

    def _url(self, path: str) -> str | None:
        if self._service is not None:
            return self._service.origin(self._connection) + self._service.prefix + path
        base = _settings().background_url
        return None if base is None else str(base).rstrip("/") + path

    def _refusal(self, error: Exception) -> NotHandedOver:
        """What to raise. The app answers it with a problem, unless it has a handler of its own for it."""
        if not isinstance(error, JobstreamError):
            logger.warning("Redis is away: %s", type(error).__name__)
            error = RedisUnavailable("Redis is away or does not take writes; try again")
        no_handlers: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
        handlers, _ = self._connection.scope.get("starlette.exception_handlers", no_handlers)
        handlers.setdefault(NotHandedOver, _answer)
        return NotHandedOver(error)


class DurableTasks(StarletteBackgroundTasks):
    """What `BackgroundTasks` is. All that are made during a request are one: tasks of that request."""

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None) -> None:
        super().__init__()
        self._handover = _current.get()
        for task in tasks or ():
            self.add_task(task.func, *task.args, **task.kwargs)

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have a function called by a worker, when the endpoint has returned.

        Raises NotCarried for a function or an argument that would not reach a worker, TypeError for arguments that the
        function does not take, RuntimeError outside of a request, ConfigurationError when no Redis is configured.
        """
        handover = self._handover or _here()
        handover.add(func, args, kwargs)

    async def __call__(self) -> None:
        """A response that was given these as its `background` need not run them."""


def background(func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> str:
    """`add_task` without a parameter that is passed down: the id of the job that it will be.

    For requests of routes of which something names `BackgroundTasks`, and for all of an app with `BackgroundMiddleware`
    or `FastAPI(dependencies=[DURABLE])`. Raises what `DurableTasks.add_task` does.
    """
    return _here().add(func, args, kwargs)


class BackgroundMiddleware:
    """For a whole app: `background()` works everywhere in it, and every kind of answer gains `Operation-Location`.

    app.add_middleware(BackgroundMiddleware)
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket") or _SCOPE in scope:
            await self._app(scope, receive, send)
            return
        handover = scope[_SCOPE] = Handover(HTTPConnection(scope))
        refused: NotHandedOver | None = None

        async def send_more(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                if message["status"] >= 400:  # what became of an exception
                    handover.drop()
                try:
                    await handover.send()
                except NotHandedOver as error:
                    refused = error
                    raise
                headers = MutableHeaders(scope=message)
                for name, value in handover.headers:
                    headers.append(name, value)
            await send(message)

        token = _current.set(handover)
        try:
            await self._app(scope, receive, send_more)
        except Exception:
            if refused is None:
                raise
        finally:
            _current.reset(token)
        if refused is not None:
            await (await _answer(Request(scope), refused))(scope, receive, send)
        await handover.finish()


@contextlib.contextmanager
def inline() -> Iterator[None]:
    """For an app's own tests: tasks run in this process after the answer, one after the other, and nothing is stored.

    Their arguments still become JSON and come back. When one has raised, the others run; then the first error is
    raised.
    """
    before, _Place.inline = _Place.inline, True
    try:
        yield
    finally:
        _Place.inline = before


def use(source: RedisSource | None) -> None:
    """Where apps of this process hand their tasks over that do not include the router. None: as the settings say."""
    _Place.source = source
    _settings.cache_clear()


class _Place:
    """Of this process."""

    inline = False
    source: RedisSource | None = None


_current: ContextVar[Handover | None] = ContextVar("handover", default=None)


def _here() -> Handover:
    handover = _current.get()
    if handover is None:
        raise RuntimeError(
            "there is no request whose tasks these could be: name BackgroundTasks as a parameter of the endpoint or "
            "of a dependency, or add BackgroundMiddleware to the app"
        )
    return handover


async def _tasks(connection: HTTPConnection, response: Response) -> DurableTasks:
    """The dependency: the tasks of this request."""
    handover = connection.scope.get(_SCOPE)
    if handover is None:
        if _FUNCTION_STACK not in connection.scope or _REQUEST_STACK not in connection.scope:
            raise ConfigurationError(
                "this FastAPI does not say when an endpoint has returned: add BackgroundMiddleware"
            )
        handover = connection.scope[_SCOPE] = Handover(connection)
        handover.speaks_by(response)
    _current.set(handover)  # FastAPI awaits dependencies in the task that awaits the endpoint
    return DurableTasks()


DURABLE: Any = Depends(_tasks)
"""For `FastAPI(dependencies=[DURABLE])`: `background()` works in all of its routes."""

if TYPE_CHECKING:
    BackgroundTasks = DurableTasks
else:
    # FastAPI makes an instance of its own for a parameter of a subclass, but calls a dependency. Calling this makes a
    # DurableTasks; only `isinstance` needs the class itself.
    BackgroundTasks = Annotated[DurableTasks, DURABLE]


@cache
def _settings() -> BackgroundSettings:
    return BackgroundSettings()


def _source() -> RedisSource:
    """Raises ConfigurationError when none is configured."""
    if _Place.source is None:
        settings = _settings()
        if settings.redis_url is None:
            raise ConfigurationError(
                "background tasks need a Redis: set JOBSTREAM_REDIS_URL, or start the app by `jobstream dev --app "
                "module:app`"
            )
        _Place.source = UrlSource.from_settings(settings)
    return _Place.source


class _Open(NamedTuple):
    """What it takes to hand over, and the generator that closes it."""

    queue: Queue
    files: FileStore
    life: AsyncGenerator[Queue, None]


_open: WeakKeyDictionary[asyncio.AbstractEventLoop, _Open] = WeakKeyDictionary()


async def _open_in_this_loop() -> _Open:
    """Once for each event loop. The loop itself closes it at its end, as it does with generators that it began."""
    loop = asyncio.get_running_loop()
    if (known := _open.get(loop)) is None:
        life = _living_queue(_source())
        known = _open[loop] = _Open(await anext(life), FileStore.at(_settings().files_place), life)
    return known


async def _living_queue(source: RedisSource) -> AsyncGenerator[Queue, None]:
    client = source.client()
    try:
        while True:
            yield Queue(client)
    finally:
        await client.aclose()


def _service(connection: HTTPConnection) -> Service | None:
    found = getattr(getattr(connection.scope.get("app"), "state", None), STATE, None)
    return found if isinstance(found, Service) else None


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotHandedOver)
    service = _service(request)
    return problems.respond(error.error, request, service.prefix if service else "")


def _uploads(parameter: str, value: object) -> Iterator[tuple[Upload, StarletteUploadFile]]:
    """The uploads that an argument is, or is a list of."""
    files: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    if not files or not all(isinstance(file, StarletteUploadFile) for file in files):
        return
    for place, file in enumerate(files):
        assert isinstance(file, StarletteUploadFile)
        if file.file.closed:
            raise NotCarried(f"the upload {file.filename!r}, given as {parameter!r}, is closed")
        upload = Upload(
            parameter=parameter,
            place=place if isinstance(value, list | tuple) else None,
            offset=file.file.tell(),
            headers=dict(file.headers),
        )
        yield upload, file


async def _spool(file: StarletteUploadFile, files: FileStore, job_id: str, number: int) -> dict[str, Any]:
    """Store all of an upload, whatever the app has read of it, piece by piece."""

    def copy() -> dict[str, Any]:
        at = file.file.tell()
        file.file.seek(0)
        with files.create(job_id, number, name=file.filename or "", content_type=file.content_type) as writer:
            while piece := file.file.read(CHUNK_BYTES):
                writer.put(piece)
        file.file.seek(at)
        return writer.file.model_dump()

    return await asyncio.to_thread(copy)


async def _run_here(added: Sequence[_Added]) -> None:
    """What `inline` does."""
    failed: Exception | None = None
    for each in added:
        if each.callee is None:
            logger.warning("task %r is not run: jobs of tasks need a worker", each.task)
            continue
        uploads: dict[str, Any] = {}
        for upload, file in each.uploads:
            again = UploadFile(file.file, size=file.size, filename=file.filename, headers=file.headers)
            file.file.seek(upload.offset)
            if upload.place is None:
                uploads[upload.parameter] = again
            else:
                uploads.setdefault(upload.parameter, []).append(again)
        given = each.callee.arrived(each.data["arguments"], uploads, None)
        try:
            if each.callee.is_async:
                await each.callee.function(*given.args, **given.kwargs)
            else:
                await run_in_threadpool(each.callee.function, *given.args, **given.kwargs)
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
