"""Ending asyncio tasks for certain, and telling code in any thread that it is to end."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_SECONDS = 0.2


class Flag:
    """Set once, looked at from any thread. Nobody can wait for it: that makes it cheaper than a threading.Event."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """From now on it is set."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and return when all have ended; what they raise stays with them.

    Asked again until it is heard: `asyncio.wait_for` before Python 3.12 swallows a cancellation that comes in the same
    turn of the loop as its result (bugs.python.org/issue37658), and client libraries use it.
    """
    while waiting := {task for task in tasks if not task.done()}:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=AGAIN_SECONDS)
