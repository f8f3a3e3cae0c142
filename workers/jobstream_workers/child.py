"""The child's side of a process pool: runs tasks in its main thread, one after the other, until its worker is gone.

Three threads: the main one runs the task, so that a signal can interrupt it; one reads the socket, so that a stop or
the worker's death is noticed while the task works; one sends what the task says, so that saying it never blocks.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from jobstream import logs, traces
from jobstream.cancellation import Flag
from jobstream.children import Order, Question
from jobstream.context import JobContext
from jobstream.errors import JobCancelled, JobstreamError, Retry
from jobstream.files import FileStore
from jobstream.outbox import Outbox
from jobstream.storage import Place
from jobstream_workers.call import call, task_raised
from jobstream_workers.frames import (
    LENGTH_BYTES,
    Answer,
    Answered,
    Asked,
    Reply,
    Returned,
    Said,
    Start,
    Stop,
    answer_of,
    error_of,
    frame,
    requests,
)
from jobstream_workers.loader import find_task

INSIST_SECONDS = 0.05
"""Between two signals to a task that is to stop."""

BATCH_SECONDS = 0.1
"""What a task says within this time goes to the worker in one message."""


class Child:
    """Answers one worker over one socket."""

    def __init__(self, connection: socket.socket, files: FileStore, told: str = "") -> None:
        """`told`: how the worker logs."""
        self._socket = connection
        self._told = told
        self._files = files
        self._jobs: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._cancelled = Flag()
        self._interruptible = False
        self._spoken = threading.Event()
        self._sending = threading.Lock()
        self._outbox: Outbox | None = None
        self._questions: dict[int, Future[bytes]] = {}
        self._numbers = itertools.count()

    def serve(self) -> NoReturn:
        """Run jobs until the worker closes the socket. Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._interrupt)
        os.register_at_fork(after_in_child=self._forget)
        main_thread = (threading.get_ident(),)
        threading.Thread(target=self._read, args=main_thread, name="jobstream-read", daemon=True).start()
        threading.Thread(target=self._relay, name="jobstream-relay", daemon=True).start()
        while True:
            start = self._jobs.get()
            self._outbox = outbox = Outbox(self._spoken.set)
            answer = self._answer(start, outbox)
            for stream in (sys.stdout, sys.stderr):
                with suppress(AttributeError, OSError, ValueError):  # the task may have closed or replaced it
                    stream.flush()
            self._flush(answer)
            if answer is None:
                os.killpg(0, signal.SIGKILL)

    def _answer(self, start: Start, outbox: Outbox) -> Answer | None:
        """None when the task ended because it was told to stop."""
        try:
            try:
                self._interruptible = True
                if self._cancelled.is_set():  # told before the line above
                    return None
                return self._run(start, outbox)
            finally:
                self._interruptible = False
        except (JobCancelled, asyncio.CancelledError):
            return None
        except BaseException as error:  # a module that exits when imported, an error that cannot be described
            return answer_of(task_raised(error))

    def _run(self, start: Start, outbox: Outbox) -> Answer:
        files = self._files.of(start.job_id, scratch=Path(start.scratch) if start.scratch else None)
        try:
            logs.run_alone(logs.JobLine(start.job_id, start.attempt, start.task, traces.trace_id(start.trace)))
            task = find_task(start.reference, start.task)
            logs.configure_for_structlog(self._told)
            job = JobContext(
                start.job_id,
                task=start.task,
                attempt=start.attempt,
                max_attempts=start.max_attempts,
                outbox=outbox,
                files=files,
                cancelled=self._cancelled,
                ask=self._ask,
            )
            with traces.below(start.trace):
                return Returned(call(task, msgspec.json.decode(start.data), job, self._cancelled))
        except (JobstreamError, Retry) as error:
            return answer_of(error)
        finally:
            files.close()

    def _ask(self, job_id: str, order: Order, body: bytes) -> Question:
        """The worker does it; the thread that reads the socket brings the answer."""
        number, answer = next(self._numbers), Future[bytes]()
        self._questions[number] = answer
        with self._sending:
            self._send(Asked(number, order, body))
        return Question(answer)

    def _hear(self, answered: Answered) -> None:
        answer = self._questions.pop(answered.number)
        if answered.timed_out:
            answer.set_exception(TimeoutError())
        elif answered.error is not None:
            answer.set_exception(error_of(answered.error))
        else:
            answer.set_result(answered.body)

    def _interrupt(self, number: int, at: FrameType | None) -> None:
        """Ends the task where it stands, once, and only if the worker said so on the socket.

        A service manager that stops the worker sends SIGTERM to every process of it; the worker decides then whether
        the jobs may end first.
        """
        if self._cancelled.is_set() and self._interruptible:
            self._interruptible = False
            raise JobCancelled

    def _read(self, main_thread: int) -> None:
        with self._socket.makefile("rb") as stream:
            while header := stream.read(LENGTH_BYTES):
                match requests.decode(stream.read(int.from_bytes(header, "big"))):
                    case Start() as start:
                        self._jobs.put(start)
                    case Answered() as answered:
                        self._hear(answered)
                    case Stop():
                        self._cancelled.set()
                        if (outbox := self._outbox) is not None:
                            outbox.interrupt()
                        threading.Thread(target=self._insist, args=(main_thread,), daemon=True).start()
        # The worker is gone, or done with this child. Whatever the task started goes too.
        os.killpg(0, signal.SIGKILL)

    def _insist(self, main_thread: int) -> None:
        """Interrupt the task, again and again until it has been: a signal that comes just before a system call begins
        does not interrupt it, and Python would look at it when the call returns. To the main thread itself, since a
        signal to the process may miss the call that thread sleeps in.
        """
        while True:
            signal.pthread_kill(main_thread, signal.SIGTERM)
            time.sleep(INSIST_SECONDS)
            if not self._interruptible:
                return

    def _relay(self) -> None:
        while self._spoken.wait():
            self._spoken.clear()
            self._flush()
            time.sleep(BATCH_SECONDS)

    def _flush(self, answer: Answer | None = None) -> None:
        """Send what waits and then the answer: the last that is sent of a job."""
        with self._sending:
            if self._outbox is None:
                return
            batch = self._outbox.take()
            if batch.progress is not None or batch.entries:
                self._send(Said(batch))
            if answer is not None:
                self._outbox = None
                self._send(answer)

    def _send(self, message: Reply) -> None:
        try:
            self._socket.sendall(frame(message))
        except OSError:
            if self._socket.fileno() < 0:  # a fork of the child that came back from the task's function
                os._exit(1)
            os.killpg(0, signal.SIGKILL)

    def _forget(self) -> None:
        """In a fork of this process: it has no worker, and must not keep the socket open when the child dies."""
        os.close(self._socket.detach())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def die_with_the_writer_of(pipe: int) -> None:
    """Have the kernel kill this process group as soon as nobody holds the pipe's other end (Linux; fcntl(2)).

    The thread that reads the socket does the same, but it needs the GIL, and a task can hold that for ever: a regular
    expression that never ends is enough.
    """
    if sys.platform == "linux":
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | fcntl.FASYNC)


def main(arguments: list[str]) -> NoReturn:
    """`python -m jobstream_workers.child SOCKET_FD PLACE LOGS SYS_PATH…`, with a pipe from its worker as stdin."""
    descriptor, place, told, *path = arguments
    sys.path[:] = path
    logs.configure_child(told)
    die_with_the_writer_of(os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    Child(socket.socket(fileno=int(descriptor)), FileStore.at(Place.load(place)), told).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
