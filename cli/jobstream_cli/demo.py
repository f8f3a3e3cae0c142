"""`jobstream demo`, a newcomer's first minute: everything is started, and four real jobs show their progress live."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import click
from pydantic import JsonValue, TypeAdapter

from jobstream.client import Client, ClientError, JobHandle
from jobstream.guard import GuardedProcess, start_guarded
from jobstream.job import JobStatus
from jobstream_cli.bars import duration
from jobstream_cli.exits import Exit, worst
from jobstream_cli.following import choose_display, follow
from jobstream_cli.ports import base_url, get_json, next_free, why_not
from jobstream_cli.service import Service
from jobstream_cli.supervise import GRACE, listening
from jobstream_cli.views import JobView
from jobstream_workers.tasks.fetch import Fetched
from jobstream_workers.tasks.files import FileReport
from jobstream_workers.tasks.primes import Primes
from jobstream_workers.tasks.words import WordCount

HOST = "127.0.0.1"
FIRST_PORT = 8000
START_SECONDS = 30.0
LOG_LINES = 20

PRIMES_UP_TO = 1_000_000_000
PIECE, PIECES, PAUSE = 64 * 1024, 40, 0.08
"""The slow page of the demo: bytes at a time, how often, seconds between."""

_SENTENCES = """\
A ticket is handed out at once, and the work begins when a hand is free.
Whoever holds the ticket may ask how far it is, or simply watch the bar grow.
Nothing is promised that was not written down first.
When a worker falls over in the middle of the night, another one picks the job up.
The clerk at the window never carries boxes, and the carriers never talk to the queue outside.
Some boxes are light, some take all morning, and a few turn out to be empty.
Every step is noted in one book, and everybody reads the same page.
If you walk away and come back later, the book is opened where you left it.
A slow guest in the next town does not keep the rest of us waiting.
At closing time the last box is put back on the shelf, and the lamp goes out.
"""


class StackFailed(Exception):
    """The service did not come up, or did not stay up."""


def run(*, port: int | None, keep: bool) -> int:
    """Run the demo. 0 when all four jobs have succeeded, 1 when not, 2 for a port in use, 130 after Ctrl-C."""
    chosen = port or next_free(HOST, FIRST_PORT)
    if chosen is None or (reason := why_not(HOST, chosen)) is not None:
        say(f"error: port {chosen or FIRST_PORT} cannot be used: {reason if chosen else 'nor can the next hundred'}")
        return Exit.USAGE
    if port is None and chosen != FIRST_PORT:
        say(f"Port {FIRST_PORT} is taken, so this runs on {chosen}.")
    with tempfile.TemporaryDirectory(prefix="jobstream-demo-") as directory:
        stack = _start_stack(chosen, Path(directory))
        if stack is None:
            return Exit.DETACHED
        try:
            return asyncio.run(_show(stack, chosen, Path(directory), keep=keep))
        except StackFailed as error:
            say(f"error: {error}\n{_end_of(_log(Path(directory)))}")
            return Exit.FAILED
        except (KeyboardInterrupt, asyncio.CancelledError):
            say("stopped")
            return Exit.DETACHED
        finally:
            _stop(stack)


def say(text: str = "") -> None:
    """A line for the person in front."""
    click.echo(text)


def _start_stack(port: int, directory: Path) -> GuardedProcess | None:
    """`jobstream dev` with data of its own, in a process that ends when this one does; None after Ctrl-C."""
    env = os.environ | {
        "JOBSTREAM_DEV_REDIS": os.environ.get("JOBSTREAM_DEV_REDIS") or "own",
        "JOBSTREAM_DATA_DIR": str(directory),
        "JOBSTREAM_FILES_DIR": str(directory / "files"),
        "JOBSTREAM_TASKS": "jobstream_workers.tasks",
        "JOBSTREAM_QUEUES": "default",
        "JOBSTREAM_FETCH_ALLOW": f"{HOST}/32",
        "JOBSTREAM_SHUTDOWN_SECONDS": "1",
    }
    argv = [sys.executable, "-m", "jobstream_cli", "dev", "--host", HOST, "--port", str(port)]
    with listening() as happened, _log(directory).open("wb") as log:
        try:
            stack = start_guarded(argv, env=env, grace=GRACE + 5, stdout=log, stderr=subprocess.STDOUT)
        except OSError:
            if happened.empty():
                raise
            return None
        if happened.empty():
            return stack
        stack.stop()
        return None


def _stop(stack: GuardedProcess) -> None:
    try:
        stack.stop()
    except KeyboardInterrupt:  # once more: then at once
        stack.kill()
        stack.wait()


async def _show(stack: GuardedProcess, port: int, directory: Path, *, keep: bool) -> int:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGINT is asyncio.run's, which cancels likewise
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    url = base_url(HOST, port)
    say(f"Starting an API, a worker and a Redis on {url} ...")
    await _until_ready(stack, port)
    _say_redis(directory)
    async with Client(url) as client, _slow_page() as page:
        try:
            jobs = await _submit_all(client, directory, page)
            say("\nFour jobs are handed in over HTTP; these bars are their event streams:\n")
            views = [JobView(job.id, task) for task, job in jobs.items()]
            await follow(client, views, choose_display(views, sys.stdout))
            say("\nResults\n")
            for task, view in zip(jobs, views, strict=True):
                say(f"  {task:7} {await _result_line(jobs[task], view)}")
        except ClientError as error:
            raise StackFailed(str(error)) from error
    _say_what_to_try(port, jobs["primes"].id, keep=keep)
    if keep:
        await _until_ended(stack)
    return Exit.OK if worst(view.exit for view in views) == Exit.OK else Exit.FAILED


async def _until_ready(stack: GuardedProcess, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        health = await asyncio.to_thread(get_json, HOST, port, "/readyz?verbose=1")
        if isinstance(health, dict) and health.get("workers"):
            return
        if (code := stack.poll()) is not None:
            raise StackFailed(f"jobstream dev has ended with exit code {code}:")
        if time.monotonic() > deadline:
            raise StackFailed(f"jobstream dev is not ready after {START_SECONDS:.0f} s:")
        await asyncio.sleep(0.05)


async def _until_ended(stack: GuardedProcess) -> None:
    try:
        while True:
            if (code := stack.poll()) is not None:
                raise StackFailed(f"jobstream dev has ended with exit code {code}:")
            await asyncio.sleep(0.2)
    except asyncio.CancelledError:  # Ctrl-C is how this is meant to end
        return


async def _submit_all(client: Client, directory: Path, page: str) -> dict[str, JobHandle]:
    texts, uploads = _write_files(directory / "input")
    return {
        "words": await client.submit("words", {"top": 3}, texts),
        "files": await client.submit("files", {}, uploads),
        "primes": await client.submit("primes", {"limit": PRIMES_UP_TO}),
        "fetch": await client.submit("fetch", {"url": page}),
    }


def _write_files(directory: Path) -> tuple[list[Path], list[Path]]:
    """Two texts to count; a text, a table and some noise to hash: large enough for a second or two of work each."""
    chance = random.Random(1)
    sentences = _SENTENCES.splitlines()
    directory.mkdir()

    def write(name: str, content: bytes) -> Path:
        path = directory / name
        path.write_bytes(content)
        return path

    def text(lines: int) -> bytes:
        return "\n".join(chance.choices(sentences, k=lines)).encode()

    rows = (f"{number},{chance.gauss(20, 5):.2f}" for number in range(20_000))
    return (
        [write("morning.txt", text(3_000) * 40), write("evening.txt", text(2_000) * 40)],
        [
            write("notes.txt", text(1_000)),
            write("table.csv", "\n".join(["hour,degrees", *rows]).encode()),
            write("noise.bin", chance.randbytes(1 << 20) * 64),
        ],
    )


@asynccontextmanager
async def _slow_page() -> AsyncIterator[str]:
    """The URL of a page on this machine that takes its time: the third party of the demo."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {PIECE * PIECES}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode())
            for _ in range(PIECES):
                writer.write(b"." * PIECE)
                await writer.drain()
                await asyncio.sleep(PAUSE)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the fetch was given up, or the demo was; asyncio would print the latter as an error of ours
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield "http://{}:{}/slow".format(*server.sockets[0].getsockname())


async def _result_line(job: JobHandle, view: JobView) -> str:
    if view.status != JobStatus.SUCCEEDED:
        return f"{view.word}: {view.message}"
    result = await job.result()
    return _SUMMARIES[view.task](result) if not isinstance(result, bytes) else f"{len(result)} bytes"


def _words(result: JsonValue) -> str:
    found = WordCount.model_validate(result)
    common = ", ".join(entry.word for entry in found.most_common)
    return f"{found.words:,} words, {found.unique} different ones, most often: {common}"


def _files(result: JsonValue) -> str:
    reports = TypeAdapter(list[FileReport]).validate_python(result)
    intact = "all as they were sent" if all(report.intact for report in reports) else "NOT as they were sent"
    return f"{len(reports)} files, {sum(report.size for report in reports) / 1e6:.1f} MB, {intact}"


def _primes(result: JsonValue) -> str:
    found = Primes.model_validate(result)
    return f"{found.count:,} primes up to {found.limit:,}, {found.twin_pairs:,} twin pairs"


def _fetch(result: JsonValue) -> str:
    found = Fetched.model_validate(result)
    return f"status {found.status}, {found.size / 1e6:.1f} MB in {duration(found.elapsed)}"


_SUMMARIES: Mapping[str, Callable[[JsonValue], str]] = {
    "words": _words,
    "files": _files,
    "primes": _primes,
    "fetch": _fetch,
}


def _say_redis(directory: Path) -> None:
    """The lines that `jobstream dev` says about its Redis: what it is, and what that means for the jobs."""
    for line in _log(directory).read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("redis ", "warning ")):
            say(line.partition(", data in ")[0])


def _say_what_to_try(port: int, job_id: str, *, keep: bool) -> None:
    url = base_url(HOST, port)
    dev = "jobstream dev" if port == FIRST_PORT else f"jobstream dev --port {port}"
    say(f"""
One job has three faces{":" if keep else "; `jobstream demo --keep` leaves them up for a visit:"}

  monitor  {url}/jobs/{job_id}
  result   {url}/primes/{job_id}   (a live page, in a browser)
  events   {url}/jobs/{job_id}/events
  docs     {url}/docs

{"It keeps running; Ctrl-C stops it. In another terminal:" if keep else f"Run `{dev}`, and in another terminal:"}

  curl -i {url}/words --json '{{"text": "to be or not to be"}}'
  curl -N {url}/jobs/<id>/events
  {Service(url).command} submit primes limit:=500000000 --watch
""")


def _log(directory: Path) -> Path:
    return directory / "dev.log"


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
