"""Tasks for the tests that kill: each run leaves a line in a file that no crash can take back, and signs its words."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from jobstream import JobContext, RetryPolicy, task
from jobstream.outbox import Room


def note(where: str, *words: object) -> None:
    """Append a line: a single write with O_APPEND, whole whoever else writes, and kept whoever is killed."""
    line = " ".join(map(str, words)) + "\n"
    file = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def begin(job: JobContext, where: str, worker: int | None = None) -> None:
    """Note that an attempt runs, and sign it in the job's log."""
    note(where, "began", job.id, job.attempt, worker or os.getpid())
    sign(job, worker)


def sign(job: JobContext, worker: int | None = None) -> None:
    """A word that says which attempt, in which worker, has said it."""
    job.chunk({"attempt": job.attempt, "pid": worker or os.getpid()})


@task
async def gated(job: JobContext, where: str, gate: str) -> int:
    """Talk until the file `gate` exists."""
    begin(job, where)
    try:
        while not Path(gate).exists():  # noqa: ASYNC240 (no file system is slow here)
            sign(job)
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        note(where, "stopped", job.id, job.attempt, os.getpid())
        raise
    return job.attempt


@task
async def silent(job: JobContext, where: str) -> None:
    """Say nothing until cancelled."""
    note(where, "began", job.id, job.attempt, os.getpid())
    try:
        await asyncio.Event().wait()
    finally:
        note(where, "stopped", job.id, job.attempt, os.getpid())


@task
async def poison(job: JobContext, where: str) -> None:
    """Kill the worker."""
    note(where, "began", job.id, job.attempt, os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.Event().wait()


@task(name="blocks-loop")
async def blocks_loop(job: JobContext, where: str, seconds: float) -> int:
    """Stop the worker's event loop."""
    begin(job, where)
    await asyncio.sleep(0.3)  # let the word out before
    time.sleep(seconds)  # noqa: ASYNC251
    return job.attempt


@task
async def coroutine(job: JobContext, where: str, seconds: float = 0.1) -> int:
    """On the event loop."""
    begin(job, where)
    await asyncio.sleep(seconds)
    sign(job)
    return job.attempt


@task
def thread(job: JobContext, where: str, seconds: float = 0.1) -> int:
    """In a thread."""
    begin(job, where)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job.raise_if_cancelled()
        time.sleep(0.01)
    sign(job)
    return job.attempt


@task(executor="process")
def process(job: JobContext, where: str, seconds: float = 0.1) -> int:
    """In a child process of the worker."""
    worker = os.getppid()
    begin(job, where, worker)
    time.sleep(seconds)
    sign(job, worker)
    return job.attempt


@task(retry=RetryPolicy(attempts=3, backoff=0.1))
async def flaky(job: JobContext, where: str) -> int:
    """Succeed at the third attempt."""
    begin(job, where)
    await asyncio.sleep(0.02)
    if job.attempt < 3:
        raise ConnectionError("not yet")
    return job.attempt


@task
async def hopeless(job: JobContext, where: str) -> None:
    """Fail."""
    begin(job, where)
    raise ValueError("no such luck")


@task
async def waiting(job: JobContext, where: str) -> None:
    """Until it is cancelled, or for half a minute."""
    begin(job, where)
    await asyncio.sleep(30)


@task
async def parent(job: JobContext, where: str) -> int:
    """Hand work to others, and wait for it."""
    begin(job, where)
    for number in range(3):
        await job.submit("coroutine", {"where": where, "seconds": number / 4})
    return len(await job.wait())


@task
async def talking(job: JobContext, where: str, seconds: float = 1.0) -> int:
    """Progress, log lines and chunks, one after the other."""
    begin(job, where)
    steps = round(seconds / 0.02)
    for step in range(steps):
        job.progress(step + 1, steps, f"step {step + 1}")
        job.log(f"attempt {job.attempt}")
        sign(job)
        await asyncio.sleep(0.02)
    return job.attempt


@task
async def chatter(job: JobContext, where: str, seconds: float, lines: int) -> None:
    """Log `lines` lines of 200 bytes every 10 ms."""
    note(where, "chatters", job.id, job.attempt, os.getpid())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in range(lines):
            job.log(f"{line:0200d}")
        job.progress(deadline - time.monotonic())
        await asyncio.sleep(0.01)


LOUD_BYTES = 50_000


def _shout(job: JobContext, number: int) -> Room:
    job.log("x" * 16_000)
    return job.chunk({"number": number, "text": "x" * LOUD_BYTES})


@task(name="loud-loop")
async def loud_loop(job: JobContext, seconds: float) -> int:
    """Say 13 MB a second, if it may. How many chunks it were."""
    number, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        await _shout(job, number)
        number += 1
        await asyncio.sleep(0.005)
    return number


def _loud(job: JobContext, seconds: float) -> int:
    number, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        _shout(job, number)
        number += 1
        time.sleep(0.005)
    return number


@task(name="loud-thread")
def loud_thread(job: JobContext, seconds: float) -> int:
    """The same in a thread."""
    return _loud(job, seconds)


@task(name="loud-process", executor="process")
def loud_process(job: JobContext, seconds: float) -> int:
    """The same in a process."""
    return _loud(job, seconds)


FEAST_BYTES = 1 << 30


def feast() -> None:
    """Take memory until the kernel ends it."""
    taken: list[bytes] = []
    while sum(map(len, taken)) < FEAST_BYTES:
        taken.append(b"x" * (8 << 20))
        time.sleep(0.001)
    time.sleep(30)  # nobody limits us: a test is to end it


@task(timeout=60)
def hog(job: JobContext, where: str, gate: str) -> int:
    """Take all memory of the worker when the file `gate` exists; in the second attempt be modest."""
    begin(job, where)
    while not Path(gate).exists():
        time.sleep(0.01)
    if job.attempt == 1:
        feast()
    return job.attempt


@task(name="hog-process", executor="process", timeout=60)
def hog_process(job: JobContext, where: str) -> None:
    """Take all memory there is."""
    note(where, "feasts", job.id, job.attempt, os.getpid())
    feast()


@task(name="hog-again", executor="process", retry=RetryPolicy(attempts=2, backoff=0.1), timeout=60)
def hog_again(job: JobContext, where: str) -> int:
    """The same in the first attempt."""
    note(where, "feasts", job.id, job.attempt, os.getpid())
    if job.attempt == 1:
        feast()
    return os.getpid()


@task
async def speaking(job: JobContext, where: str, steps: int) -> int:
    """Log lines, chunks and progress in an order that the job's id decides; the progress names the attempt."""
    begin(job, where)
    chance = random.Random(job.id)
    for step in range(steps):
        job.progress(step + 1, steps, str(job.attempt))
        for _ in range(chance.randrange(3)):
            job.log(f"step {step} " + "x" * chance.randrange(100))
        if chance.randrange(2):
            job.chunk({"step": step, "attempt": job.attempt})
        await asyncio.sleep(chance.uniform(0, 0.15))
    return job.attempt
