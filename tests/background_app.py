"""Somebody's FastAPI app: tasks added in every way and at every depth, to functions that note what they were given."""

import datetime
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, UploadFile
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from jobstream import JobContext, task
from jobstream.background import BackgroundMiddleware, BackgroundTasks, background
from jobstream.call import NotCarried

noted: list[Any] = []


class Mail(BaseModel):
    to: str
    sent: datetime.datetime


def note(word: str) -> None:
    noted.append(word)


async def note_async(word: str, *more: int, at: datetime.date | None = None) -> None:
    noted.append((word, more, at))


def note_mail(mail: Mail, body: bytes, folder: Path) -> None:
    noted.append((mail, body, folder))


def fail(word: str) -> None:
    raise ValueError(word)


def with_job(word: str, job: JobContext | None = None) -> None:
    assert job is not None
    job.log(word)
    noted.append(job.task)


async def read_file(file: UploadFile, label: str) -> None:
    noted.append((label, file.filename, file.content_type, file.size, await file.read()))


def read_files(files: list[UploadFile]) -> None:
    noted.append([(file.filename, file.file.read()) for file in files])


class Desk:
    @staticmethod
    def stamp(word: str) -> None:
        noted.append(f"stamped {word}")

    def sign(self, word: str) -> None: ...


@task
def shout(word: str, times: int = 1) -> str:
    """Say it loudly."""
    return word.upper() * times


def deep(word: str) -> None:
    def deeper() -> None:
        background(note, word)

    deeper()


def logged(q: str | None, background_tasks: BackgroundTasks) -> str | None:
    if q:
        background_tasks.add_task(note, f"query {q}")
    return q


async def session(background_tasks: BackgroundTasks) -> AsyncIterator[str]:
    yield "session"
    background_tasks.add_task(note, "after the answer")


app = FastAPI()


@app.post("/simple/{word}")
async def simple(word: str, background_tasks: BackgroundTasks) -> dict[str, str]:
    background_tasks.add_task(note_async, word, 1, 2, at=datetime.date(2026, 11, 21))
    return {"said": word}


@app.post("/thread/{word}")
def thread(word: str, background_tasks: BackgroundTasks) -> str:
    deep(word)
    BackgroundTasks().add_task(Desk.stamp, word)
    return word


@app.post("/dependency")
async def dependency(background_tasks: BackgroundTasks, q: Annotated[str | None, Depends(logged)] = None) -> None:
    background_tasks.add_task(note, "endpoint")


@app.post("/session")
async def with_session(session: Annotated[str, Depends(session)]) -> str:
    background(note, "endpoint")
    return session


@app.post("/values")
async def values(background_tasks: BackgroundTasks) -> None:
    mail = Mail(to="ada@example.com", sent=datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC))
    background_tasks.add_task(note_mail, mail, b"\xff\x00", folder=Path("inbox"))
    background_tasks.add_task(with_job, word="hello")


@app.post("/task")
async def submit_task(background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(shout, "no", times=2)


@app.post("/files")
async def files(file: UploadFile, others: list[UploadFile], background_tasks: BackgroundTasks) -> bytes:
    head = await file.read(3)
    background_tasks.add_task(read_file, file, label="rest")
    await file.seek(0)
    background_tasks.add_task(read_file, file, "all")
    background_tasks.add_task(read_files, others)
    return head


@app.post("/one-fails")
async def one_fails(background_tasks: BackgroundTasks) -> None:
    for function in (fail, note, fail, note):
        background_tasks.add_task(function, "after a failure")


@app.post("/raises")
async def raises(background_tasks: BackgroundTasks, how: str) -> None:
    background_tasks.add_task(note, "never")
    raise HTTPException(418, "no") if how == "http" else RuntimeError("no")


@app.post("/wrong/{what}")
async def wrong(what: str, background_tasks: BackgroundTasks) -> str:
    given: dict[str, tuple[Callable[..., Any], Any]] = {
        "lambda": (lambda word: None, "a"),
        "partial": (functools.partial(note, "a"), None),
        "method": (Desk().sign, "a"),
        "closure": (lambda: given, None),
        "builtin": (print, "a"),
        "argument": (note, object()),
        "secret": (read_file, object()),
    }
    function, argument = given[what]
    try:
        background_tasks.add_task(function, *([] if argument is None else [argument]))
    except (NotCarried, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


@app.post("/own-response")
async def own_response(background_tasks: BackgroundTasks) -> Response:
    background_tasks.add_task(note, "own response")
    return Response("mine", background=background_tasks)


@app.post("/stream")
async def stream(background_tasks: BackgroundTasks) -> StreamingResponse:
    background_tasks.add_task(note, "before")

    def pieces() -> Iterator[str]:
        yield "a piece"
        background_tasks.add_task(note, "meanwhile")

    return StreamingResponse(pieces())


covered = FastAPI()
covered.add_middleware(BackgroundMiddleware)
covered.mount("/inner", app)


@covered.post("/move")
def move() -> RedirectResponse:
    deep("moved")
    return RedirectResponse("/there", status_code=303)


@covered.post("/fails")
def fails() -> None:
    deep("never")
    raise HTTPException(404)


@covered.post("/refuses")
def refuses() -> Response:
    deep("all the same")
    return Response(status_code=409)


async def plain(request: Request) -> Response:
    deep("plain")
    return Response()


covered.router.add_route("/plain", plain, methods=["POST"])
