"""Tasks for tests, in an importable module: child processes must find them too."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, field_validator

from jobstream import JobCancelled, JobContext, JobFile, TaskError, task
from jobstream.errors import InvalidInput


class Sum(BaseModel):
    """A result with a shape."""

    total: int


class Broken(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Picky(BaseModel):
    """An input whose validator raises what pydantic does not expect."""

    value: int

    @field_validator("value")
    @classmethod
    def refuse(cls, value: int) -> int:
        raise RuntimeError(f"refused {value}")


# On the event loop


@task
async def add(a: int, b: int = 1) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@task
async def loop_forever(job: JobContext) -> None:
    """Waits until it is cancelled, and says so."""
    job.log("started")
    try:
        await asyncio.Event().wait()
    finally:
        job.log("cleaned up")


@task
async def loop_raises(kind: str) -> None:
    """Raises what it is asked for."""
    _raise(kind)


@task
async def loop_wrong_result() -> int:
    """Promises a number."""
    result: Any = "no number"
    return result  # type: ignore[no-any-return]


# In a thread


@task
def thread_add(a: int, b: int = 1) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@task
def thread_name() -> str:
    """Where it runs."""
    return threading.current_thread().name


@task
def thread_until_cancelled(job: JobContext) -> None:
    """Works until `progress` tells it to stop."""
    try:
        while True:
            job.progress(1)
            time.sleep(0.001)
    finally:
        job.log("cleaned up")


@task
def thread_raises(kind: str) -> None:
    """Raises what it is asked for."""
    _raise(kind)


@task
def thread_picky(picky: Picky) -> None:
    """Never gets to run."""


# In a process


@task(executor="process")
def process_add(a: int, b: int = 1) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


def _double(number: int) -> int:
    return number * 2


process_double = task(name="process_double", executor="process")(_double)
"""A task under another name than its function's."""


@task(executor="process")
def process_pid() -> int:
    """Which process runs it."""
    print("a line on standard output")
    return os.getpid()


@task(executor="process")
def process_size(file: JobFile, job: JobContext) -> tuple[str, int, int, str, int]:
    """What a task may know of its job, and the size of its file."""
    with job.files.open(file) as source:
        return job.id, job.attempt, job.max_attempts, job.task, len(source.read())


@task(executor="process")
def process_talks(job: JobContext, steps: int) -> None:
    """Says a lot."""
    for step in range(steps):
        job.progress(step + 1, steps, f"step {step}")
        job.chunk(step)
    job.log("the last word")


@task(executor="process")
def process_floods(job: JobContext, lines: int) -> None:
    """Says more than anybody can write."""
    for line in range(lines):
        job.log(str(line))


@task(executor="process")
def process_raises(kind: str) -> None:
    """Raises what it is asked for."""
    _raise(kind)


@task(executor="process")
def process_wrong_result() -> int:
    """Promises a number."""
    result: Any = "no number"
    return result  # type: ignore[no-any-return]


@task(executor="process")
def process_picky(picky: Picky) -> None:
    """Never gets to run."""


@task(executor="process")
def process_dies(how: str) -> None:
    """Takes its process down."""
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "closefds":
            os.closerange(3, 256)


@task(executor="process")
def process_sleeps(job: JobContext) -> None:
    """Sleeps in a system call; its `finally` speaks."""
    try:
        job.log(str(os.getpid()))  # whoever reads it may interrupt at once
        time.sleep(600)
    finally:
        job.log("cleaned up")


@task(executor="process")
def process_spins(job: JobContext) -> None:
    """Cannot be asked: swallows every exception and goes on. Its own child is stubborn too."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    said = False
    while True:
        try:
            if not said:
                said = True
                job.chunk([os.getpid(), grandchild.pid])  # whoever reads it may interrupt at once
            while True:
                pass
        except BaseException:
            job.log("not now")


@task(executor="process")
def process_holds_the_gil(path: str = "/dev/stdout") -> None:
    """Writes its process's id to `path`; from then on no other thread of it gets a turn."""
    Path(path).write_text(f"[{os.getpid()}]\n")
    re.match(r"(a+)+$", "a" * 60 + "b")


@task(executor="process")
def process_stdin() -> str:
    """What can be read from standard input: nothing, at once."""
    return sys.stdin.read()


@task(executor="process")
def process_forks(path: str) -> None:
    """Dies while a fork of it lives on, which had all its open files; writes the fork's id to `path`."""
    fork = os.fork()
    if fork == 0:
        time.sleep(600)
        os._exit(0)
    Path(path).write_text(str(fork))
    os._exit(4)


@task(executor="process")
def process_ignores_sigterm_of_strangers(job: JobContext) -> str:
    """A service manager signals every process of the service."""
    os.kill(os.getpid(), signal.SIGTERM)
    job.progress(1)
    return "survived"


def nested() -> Any:
    """A task that no other process can import."""

    @task(executor="process")
    def hidden() -> None:
        """Out of reach."""

    return hidden


def _raise(kind: str) -> NoReturn:
    match kind:
        case "value":
            raise ValueError("bad value")
        case "task":
            raise TaskError("too poor", status=402, code="no-money", retryable=True)
        case "odd-task":
            raise TaskError(OSError("not a string"), code="odd")  # type: ignore[arg-type]
        case "exit":
            sys.exit(7)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "job-cancelled":
            raise JobCancelled
        case "stop":
            raise StopIteration
        case "broken":
            raise Broken
        case "undecodable":
            raise FileNotFoundError(os.fsdecode(b"/caf\xe9"))
        case "input":
            raise InvalidInput("not the caller's")
        case "huge":
            raise ValueError("x" * 1_000_000)
    raise AssertionError(f"unknown: {kind}, {Path.cwd()}")


def _shout(job: JobContext, count: int) -> int:
    for number in range(count):
        job.chunk([number, "x" * 100_000])
    return count


@task
def thread_shouts(job: JobContext, count: int = 1_000_000) -> int:
    """Say more than anybody reads."""
    return _shout(job, count)


@task(executor="process")
def process_shouts(job: JobContext, count: int = 1_000_000) -> int:
    """The same in a process."""
    return _shout(job, count)


@task
async def loop_shouts(job: JobContext, count: int = 1_000_000) -> int:
    """The same on the event loop."""
    for number in range(count):
        await job.chunk([number, "x" * 100_000])
    return count
