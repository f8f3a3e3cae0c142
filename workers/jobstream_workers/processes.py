"""The worker's side of a process pool: child processes that run one task at a time and can always be killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from jobstream import logs
from jobstream.children import Order
from jobstream.errors import ConfigurationError, JobstreamError, TaskCrashed
from jobstream.outbox import Outbox
from jobstream.storage import Place
from jobstream_workers.frames import (
    LENGTH_BYTES,
    Answer,
    Answered,
    Asked,
    Failed,
    Reply,
    Request,
    Returned,
    Said,
    Start,
    Stop,
    answer_of,
    error_of,
    frame,
    replies,
)
from jobstream_workers.oom import oom_kills

T = TypeVar("T")
Serve = Callable[[Order, bytes], Awaitable[bytes]]

logger = logging.getLogger("jobstream.processes")


class ProcessPool:
    """Up to `size` child processes, started when first needed and used again.

    A child that was told to stop is never used again: the exception that ended its task may have left a lock held or
    a module half imported.
    """

    def __init__(self, size: int, *, place: Place, kill_grace: float) -> None:
        self._slots = asyncio.Semaphore(size)  # wakes its waiters in their order
        self._place = place
        self._kill_grace = kill_grace
        self._idle: list[_Child] = []
        self._alive: set[_Child] = set()
        self._closed = False

    async def run(
        self, start: Start, outbox: Outbox, begun: Callable[[], None] = lambda: None, serve: Serve | None = None
    ) -> bytes:
        """Run one attempt in a free child; give the result as JSON. `begun` is called when it has one; `serve` answers
        what its code asks of the worker.

        Raises what the task raised (see `frames.error_of`), TaskCrashed when the child died. Cancelling it tells the
        child to stop, kills it `kill_grace` seconds later, and returns when it is gone.
        """
        async with self._slots:
            child = await self._free_child()
            begun()
            kills = oom_kills()
            talk = child.run(start, outbox, serve)
            try:
                await asyncio.wait([talk])
            except asyncio.CancelledError:
                await uninterrupted(self._stop(child, talk))
                raise
            if (error := talk.exception()) is not None:
                code = await uninterrupted(self._remove(child))
                if isinstance(error, OSError):
                    raise TaskCrashed(_reason(code, out_of_memory=oom_kills() > kills)) from error
                raise error
            self._idle.append(child)
        answer = talk.result()
        if isinstance(answer, Returned):
            return answer.result
        raise error_of(answer)

    async def close(self) -> None:
        """Kill every child and wait until all are gone."""
        self._closed = True
        await asyncio.gather(*(self._remove(child) for child in self._alive))

    async def _free_child(self) -> _Child:
        if self._closed:
            raise TaskCrashed("The worker is closing")
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            await uninterrupted(self._remove(child))
        try:
            child = _Child(self._place)
        except OSError as error:
            raise TaskCrashed(f"No process could be started: {error}") from error
        self._alive.add(child)
        return child

    async def _stop(self, child: _Child, talk: asyncio.Task[Answer]) -> None:
        child.hear_out()
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._kill_grace):
                await child.send(Stop())
                await asyncio.wait([talk])
        await self._remove(child)

    async def _remove(self, child: _Child) -> int:
        code = await child.kill()
        self._alive.discard(child)
        return code


class _Child:
    """One child process and the socket to it."""

    def __init__(self, place: Place) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)  # noqa: FBT003 (the standard library's name for it)
        self._sending = asyncio.Lock()
        self._talk: asyncio.Task[Answer] | None = None
        self._outbox: Outbox | None = None
        # Absolute paths: a task may change the child's working directory.
        path = [entry or os.getcwd() for entry in sys.path]
        arguments = [str(theirs.fileno()), place.dump(), logs.in_force(), *path]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # -P: the child's path is what it is told, from its first import on
                    [sys.executable, "-P", "-m", "jobstream_workers.child", *arguments],
                    stdin=subprocess.PIPE,  # nothing is written to it; see `die_with_the_writer_of`
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a group of its own: what a task starts is killed with its child
                )
            except OSError:
                self._socket.close()
                raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, start: Start, outbox: Outbox, serve: Serve | None = None) -> asyncio.Task[Answer]:
        """The conversation about one job. It ends with an OSError when the child dies, and is never cancelled."""
        self._outbox = outbox
        self._talk = asyncio.create_task(self._converse(start, outbox, serve))
        return self._talk

    async def _converse(self, start: Start, outbox: Outbox, serve: Serve | None) -> Answer:
        await self.send(start)
        answering: dict[asyncio.Task[None], Order] = {}
        try:
            while isinstance(reply := await self._receive(), Said | Asked):
                if isinstance(reply, Asked):
                    task = asyncio.create_task(self._answer(reply, serve))
                    answering[task] = reply.order
                    task.add_done_callback(answering.pop)
                    continue
                outbox.put(reply.batch)
                await outbox.room()  # until then the socket fills up, and the child's own outbox
            if isinstance(reply, Returned):  # what it has submitted is stored before it ends
                await asyncio.gather(*[task for task, order in answering.items() if order == "submit"])
            return reply
        finally:
            for task in answering:
                task.cancel()

    async def _answer(self, asked: Asked, serve: Serve | None) -> None:
        try:
            if serve is None:
                raise ConfigurationError("there is nobody who could be asked here")
            answer = Answered(asked.number, await serve(asked.order, asked.body))
        except TimeoutError:
            answer = Answered(asked.number, timed_out=True)
        except JobstreamError as error:
            failed = answer_of(error)
            assert not isinstance(failed, Returned)
            answer = Answered(asked.number, error=failed)
        except Exception:
            logger.exception("what a process asked could not be answered")
            answer = Answered(asked.number, error=Failed("internal-error", "See the worker's log."))
        with suppress(OSError):
            await self.send(answer)

    def hear_out(self) -> None:
        """Hold the child back no more: it is to end."""
        if self._outbox is not None:
            self._outbox.interrupt()

    async def send(self, message: Request) -> None:
        async with self._sending:
            await asyncio.get_running_loop().sock_sendall(self._socket, frame(message))

    async def kill(self) -> int:
        """End the child and all that it started, if it has not ended yet. Its exit code; below 0: the signal."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = await asyncio.to_thread(self._process.wait)
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.hear_out()
        if self._talk is not None:
            await settled(self._talk)  # before the close: the event loop must not wait for a closed socket
        self._socket.close()
        return code

    async def _receive(self) -> Reply:
        size = int.from_bytes(await self._read(LENGTH_BYTES), "big")
        return replies.decode(await self._read(size))

    async def _read(self, size: int) -> bytearray:
        loop = asyncio.get_running_loop()
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = await loop.sock_recv_into(self._socket, rest)
            if count == 0:
                raise ConnectionResetError
            rest = rest[count:]
        return data


def _reason(code: int, *, out_of_memory: bool) -> str:
    """How a child ended that nobody had told to. `out_of_memory`: the kernel has killed for that meanwhile."""
    if code >= 0:
        return f"The process that ran the task ended with exit code {code}"
    if code == -signal.SIGKILL and out_of_memory:
        return "killed: out of memory, probably (SIGKILL, and the kernel has killed for want of memory meanwhile)"
    return f"The process that ran the task was ended by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


async def uninterrupted(work: Coroutine[object, object, T]) -> T:
    """Await `work` to its end. A cancellation that comes meanwhile is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def settled(future: asyncio.Future[Any]) -> None:
    """Wait until the future is done, whatever it gives."""
    await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # now it counts as seen
