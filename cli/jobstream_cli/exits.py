"""Exit codes: what a script may rely on."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    NOT_FOUND = 4
    UNAUTHORIZED = 5
    REJECTED = 6
    UNREACHABLE = 7
    TIMEOUT = 124
    """The time to wait is over; the job goes on."""
    DETACHED = 130
    """Ctrl-C; the job goes on."""


BETTER_TO_WORSE = (
    Exit.OK,
    Exit.CANCELLED,
    Exit.FAILED,
    Exit.TIMEOUT,
    Exit.NOT_FOUND,
    Exit.REJECTED,
    Exit.UNAUTHORIZED,
    Exit.UNREACHABLE,
)


def worst(codes: Iterable[Exit]) -> Exit:
    """The code for several jobs: the worst one wins; none at all is fine."""
    return max(codes, key=BETTER_TO_WORSE.index, default=Exit.OK)
