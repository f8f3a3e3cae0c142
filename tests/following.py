"""A follower as a test follows it: frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from jobstream_api.live.frame import Frame
from jobstream_api.live.stream import Followed

OPENED = Frame("opened", None, 0, b"")
"""The follower has joined: from here on nothing is missed."""


async def frames_of(follower: Followed) -> AsyncGenerator[Frame, None]:
    """`OPENED`, then what the follower takes, one at a time; no frame at all when it has seen `done` already.

    Raises what the follower's `join` raises, and at the end what has ended it.
    """
    changed = asyncio.Event()
    follower.ready = changed.set
    try:
        if not await follower.join():
            return
        yield OPENED
        while True:
            while taken := follower.take():
                for frame in taken:
                    yield frame
            if follower.error is not None:
                raise follower.error
            if follower.over:
                return
            if not changed.is_set():
                await changed.wait()
            changed.clear()
    finally:
        follower.leave()
