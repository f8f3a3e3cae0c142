"""Children: jobs that running code submits; how it asks for them from a coroutine, a thread or a process.

What code asks for is JSON, whichever executor it runs in: the worker's event loop does it, and answers with JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillWaiting
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from jobstream.cancellation import Flag
from jobstream.errors import JobCancelled

T = TypeVar("T")

Order = Literal["submit", "wait"]


@dataclass(slots=True)
class Question:
    """What was asked; the answer comes in a thread of the worker's choice."""

    answer: Future[bytes]
    looked_at: bool = False
    """The code has waited for the answer: what is wrong is its affair."""


Ask = Callable[[str, Order, bytes], Question]
"""Have the worker do it for the job of that id."""

LOOK_SECONDS = 0.2
"""How often a thread that waits looks whether its job was told to stop."""


class Pending(Generic[T]):
    """What was asked for and is under way: `await` it in a coroutine, `get()` it in a thread or a process."""

    def __init__(self, question: Question, read: Callable[[bytes], T], job_id: str, cancelled: Flag) -> None:
        self._question = question
        self._read = read
        self._job_id = job_id
        self._cancelled = cancelled

    def __await__(self) -> Generator[object, None, T]:
        self._question.looked_at = True
        answer = yield from asyncio.wrap_future(self._question.answer).__await__()
        return self._read(answer)

    def get(self) -> T:
        """Wait for it. Raises JobCancelled as soon as the job is to stop, RuntimeError on an event loop."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("get() would stop the event loop: await it")
        self._question.looked_at = True
        answer = self._question.answer
        while True:
            try:
                return self._read(answer.result(LOOK_SECONDS))
            except StillWaiting:
                if answer.done():
                    raise
                if self._cancelled.is_set():
                    raise JobCancelled(self._job_id) from None
