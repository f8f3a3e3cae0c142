"""The task of `python -m benchmarks.fairness`."""

from __future__ import annotations

import asyncio
import time

from jobstream import task


@task
async def works(seconds: float) -> tuple[int, int]:
    """Hold a slot; when it was called and when it ended, in ns."""
    began = time.time_ns()
    await asyncio.sleep(seconds)
    return began, time.time_ns()
