"""The task of `python -m benchmarks.fairness`."""

from __future__ import annotations

import asyncio

from jobstream import task


@task
async def works(seconds: float) -> None:
    """Hold a slot."""
    await asyncio.sleep(seconds)
