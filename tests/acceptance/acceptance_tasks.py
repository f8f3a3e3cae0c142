"""Tasks for the acceptance tests: each ends, fails, talks or hangs in one way."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from jobstream import JobContext, JobFile, TaskError, task

SECRET = "swordfish at /etc/passwd line 42"


class Article(BaseModel):
    """A line of an order."""

    name: str = Field(min_length=1, max_length=40)
    count: int = Field(1, ge=1)


class Order(BaseModel):
    """An input with lists, choices and defaults."""

    articles: list[Article] = Field(min_length=1)
    paid: bool = False
    colours: list[Literal["red", "green"]] = []
    price: float | None = None


class Cat(BaseModel):
    """One kind of animal."""

    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    """Another kind of animal."""

    kind: Literal["dog"]
    tricks: list[str] = []


class Tree(BaseModel):
    """A type that holds itself."""

    animal: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    children: list[Tree] = []


class Measured(BaseModel):
    """What arrived of a file."""

    name: str
    size: int
    read: int
    sha256: str
    content_type: str | None


@task
async def echo(value: Any = None) -> Any:
    """Give back what came."""
    return value


@task
async def order(order: Order) -> Order:
    """Give back the order as the task understood it."""
    return order


@task
async def tree(tree: Tree) -> Tree:
    """Give back a tree."""
    return tree


@task(accepted_status=303)
async def see_other() -> str:
    """A task that answers 303."""
    return "seen"


@task
async def refuse(status: int = 422, code: str = "refused") -> None:
    """Fail by the caller's fault."""
    raise TaskError("No, thank you", status=status, code=code)


@task
async def crash() -> None:
    """Fail by a mistake, whose traceback is nobody's business."""
    hidden = SECRET
    raise RuntimeError(f"broken: {len(hidden)}")


@task(executor="process")
def die() -> None:
    """Take the process down."""
    os._exit(3)


@task(name="hang-loop")
async def hang_loop(job: JobContext) -> None:
    """Wait on the event loop until cancelled."""
    job.log("started")
    await asyncio.Event().wait()


@task(name="hang-thread")
def hang_thread(job: JobContext) -> None:
    """Wait in a thread until cancelled."""
    job.log("started")
    pause = threading.Event()
    while not pause.wait(0.01):
        job.raise_if_cancelled()


@task(name="hang-process", executor="process")
def hang_process(job: JobContext) -> None:
    """Wait in a child process, in a system call, until cancelled."""
    job.log("started")
    time.sleep(600)


@task
def puppet(job: JobContext, strings: str) -> str:
    """Do what is written, line by line, into the named pipe `strings`."""
    with open(strings, encoding="utf-8") as pipe:
        for line in pipe:
            order, _, rest = line.rstrip("\n").partition(" ")
            match order:
                case "log":
                    job.log(rest)
                case "chunk":
                    job.chunk(json.loads(rest))
                case "progress":
                    current, total, message = rest.split(" ", 2)
                    job.progress(int(current), int(total), message)
                case "fail":
                    raise TaskError(rest)
                case "end":
                    return rest
    return "the pipe was closed"


def _measured(job: JobContext, file: JobFile) -> Measured:
    with job.files.open(file) as source:
        read = len(source.read())
    return Measured(name=file.name, size=file.size, read=read, sha256=file.sha256, content_type=file.content_type)


@task
def measure(job: JobContext, files: Annotated[list[JobFile], Field(min_length=1)], label: str = "") -> list[Measured]:
    """Measure any number of files."""
    job.log(label)
    return [_measured(job, file) for file in files]


@task(name="measure-one")
def measure_one(job: JobContext, file: JobFile) -> Measured:
    """Measure exactly one file."""
    return _measured(job, file)


@task(name="measure-maybe")
def measure_maybe(job: JobContext, note: str, file: JobFile | None = None) -> Measured | None:
    """Measure a file, if there is one."""
    return _measured(job, file) if file else None
