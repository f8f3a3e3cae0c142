"""Tasks for the worker's tests: each ends, hangs or breaks in a way of its own."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import BaseModel

from jobstream import JobContext, Retry, RetryPolicy, TaskError, task


class Total(BaseModel):
    """A result with a shape."""

    total: int


@task
async def add(a: int, b: int = 1) -> Total:
    """Add two numbers."""
    return Total(total=a + b)


@task
async def who(job: JobContext) -> tuple[str, int]:
    """The job's own id and attempt."""
    return job.id, job.attempt


@task
async def raises() -> None:
    """Goes wrong, with a secret in the traceback's file but not in the message."""
    raise ValueError("no such luck")


@task
async def refuses() -> None:
    """The caller's fault."""
    raise TaskError("the URL is not yours", status=403, code="not-yours")


@task
async def wrong_result() -> Total:
    """Does not keep its promise."""
    result: Any = {"total": "many"}
    return result  # type: ignore[no-any-return]


@task
async def waits(job: JobContext) -> None:
    """Until it is cancelled."""
    job.log("started")
    await asyncio.Event().wait()


@task(timeout=0.2)
async def too_slow() -> None:
    """Longer than it may."""
    await asyncio.Event().wait()


@task
def thread_works(job: JobContext) -> None:
    """Until `progress` tells it to stop."""
    job.log("started")
    while True:
        job.progress(1)
        time.sleep(0.002)


@task(executor="process")
def process_works(job: JobContext) -> None:
    """Until SIGTERM."""
    job.log("started")
    while True:
        time.sleep(0.01)


@task
async def blocks(seconds: float) -> str:
    """Blocks the event loop, as nobody should."""
    time.sleep(seconds)  # noqa: ASYNC251
    return "done"


@task
async def talks(job: JobContext, words: int) -> str:
    """More than can be written one by one."""
    for word in range(words):
        job.progress(word + 1, words)
        job.items([f"item {word}"])
    for word in range(20):
        job.log(f"line {word}")
        job.chunk({"n": word})
    return "said"


@task
async def huge() -> int:
    """An integer that msgpack has no room for."""
    return 10**40


@task
def deaf(job: JobContext) -> None:
    """A thread that listens to nobody, for a while."""
    job.log("started")
    time.sleep(6)


class Unlucky(Exception):
    """Worth another attempt."""


class Hopeless(Unlucky):
    """Not worth another attempt, although its parent is."""


A_WHILE = 60.0
"""Longer than any test waits; an event loop that is closed waits for its coroutines, and must not do so for ever."""

THRICE = RetryPolicy(attempts=3, backoff=0.01, jitter=0, give_up_on=(Hopeless,))


def _fail(job: JobContext, times: int, hopeless: bool) -> int:
    if job.attempt <= times:
        raise (Hopeless if hopeless else Unlucky)(f"attempt {job.attempt}")
    return job.attempt


@task(retry=THRICE)
async def flaky(job: JobContext, fails: int, hopeless: bool = False) -> int:
    """Fails so many times."""
    return _fail(job, fails, hopeless)


@task(retry=THRICE)
def flaky_thread(job: JobContext, fails: int, hopeless: bool = False) -> int:
    """The same in a thread."""
    return _fail(job, fails, hopeless)


@task(retry=THRICE, executor="process")
def flaky_process(job: JobContext, fails: int, hopeless: bool = False) -> int:
    """The same in a child process."""
    return _fail(job, fails, hopeless)


@task(retry=THRICE)
async def always_unlucky() -> None:
    """Fails."""
    raise Unlucky("as ever")


def _ask(job: JobContext, times: int, after: float | None) -> int:
    if job.attempt <= times:
        raise Retry("not yet", after=after)
    return job.attempt


@task(retry=THRICE)
async def asks(job: JobContext, times: int, after: float | None = None) -> int:
    """Asks to be tried again."""
    return _ask(job, times, after)


@task(retry=THRICE, executor="process")
def asks_process(job: JobContext, times: int, after: float | None = None) -> int:
    """The same in a child process."""
    return _ask(job, times, after)


@task
async def asks_in_vain() -> None:
    """Asks to be tried again without a policy that allows it."""
    raise Retry("not yet")


@task(retry=RetryPolicy(attempts=2, backoff=200, jitter=0))
async def patient() -> None:
    """Fails; its next attempt is far away."""
    raise Unlucky("today")


@task(retry=RetryPolicy(attempts=5, backoff=0.02, factor=3, max_backoff=0.1, jitter=0))
async def backs_off() -> None:
    """Fails and fails."""
    raise Unlucky("again")


@task(timeout=0.1, retry=RetryPolicy(attempts=2, backoff=0.01, retry_on=(TimeoutError,)))
async def slow_at_first(job: JobContext) -> int:
    """Takes too long once."""
    if job.attempt == 1:
        await asyncio.Event().wait()
    return job.attempt


@task(retry=RetryPolicy(attempts=2, backoff=0.01, retry_on=(TimeoutError,)))
async def only_timeouts() -> None:
    """Fails in a way that is not tried again."""
    raise Unlucky("not a timeout")


@task(retry=RetryPolicy(attempts=2, backoff=0.01), executor="process")
def dies_at_first(job: JobContext) -> int:
    """Takes its process down once."""
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.attempt


@task(retry=THRICE)
async def refuses_again(retryable: bool) -> None:
    """The caller's fault, which may pass or not."""
    raise TaskError("busy", status=503, code="busy", retryable=retryable)


@task(retry=RetryPolicy(attempts=3, backoff=600, jitter=0))
async def fails_when_cancelled(job: JobContext) -> None:
    """Goes wrong while it cleans up."""
    job.log("started")
    try:
        await asyncio.Event().wait()
    finally:
        raise Unlucky("the cleaning failed")


@task(timeout=0.2)
async def stubborn(job: JobContext, times: int) -> str:
    """Swallows that many cancellations, and says so."""
    for number in range(times):
        job.log(f"{number}")
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(A_WHILE)
    job.log("yields")
    await asyncio.Event().wait()
    return "never"


@task(timeout=0.1, name="never-stops", retry=THRICE)
async def never_stops(job: JobContext) -> None:
    """Swallows every cancellation, and says so, until a test has had enough."""
    told = 0
    while told < 1000:
        told += 1
        job.log(f"told {told} times")
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(A_WHILE)
            return


@task(timeout=0.2, name="slow-thread")
def slow_thread(job: JobContext) -> None:
    """Longer than it may, in a thread."""
    while True:
        job.raise_if_cancelled()
        time.sleep(0.002)


@task(timeout=0.5, name="slow-process", executor="process")
def slow_process() -> None:
    """Longer than it may, in a child process that listens to nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


@task(executor="process")
def spins(job: JobContext) -> None:
    """Burns its process's CPU, and listens to nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.log(str(os.getpid()))
    while True:
        pass


@task(executor="process")
def killed(number: int) -> None:
    """Its process is ended by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(10)


@task(executor="process")
def hungry() -> int:
    """Asks for more memory than it is allowed."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(bytearray(4 << 30))


class Turnstile:
    """What the tasks with a limit know of each other: they run in this process."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.gates: dict[str, asyncio.Event] = {}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """One more runs."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        finally:
            self.running -= 1


TURNSTILE = Turnstile()


@task(max_running=2, retry=RetryPolicy(attempts=2, backoff=600, jitter=0))
async def limited(job: JobContext, gate: str = "", fails: bool = False, again: bool = False) -> str:
    """At most two at a time; each waits for its gate."""
    with TURNSTILE.inside():
        job.log("started")
        await (TURNSTILE.gates[gate].wait() if gate else asyncio.sleep(0.001))
        if fails:
            raise Retry("later") if again else TaskError("no")
        return gate


@task
async def waits_at(job: JobContext, gate: str) -> str:
    """Waits for its gate."""
    job.log("started")
    await TURNSTILE.gates[gate].wait()
    return gate


ORDER: list[str] = []


@task
async def enters(name: str) -> None:
    """Notes in which order jobs ran."""
    ORDER.append(name)


@task
async def note(job: JobContext, path: str) -> str:
    """Leaves a line in a file."""
    append(path, f"{job.id} ours")
    await asyncio.sleep(0.01)
    return "noted"


def append(path: str, line: str) -> None:
    """Add a line to a file, in one write."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)
