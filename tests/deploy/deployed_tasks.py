"""A task for the image: it notes each of its runs in Redis, whoever else knows of them."""

from __future__ import annotations

import asyncio
import os

from redis.asyncio import Redis

from jobstream import JobContext, task

RUNS = "test:runs"
RELEASED = "test:released"


@task(timeout=60)
async def leave_a_trace(number: int, seconds: float = 0.0) -> int:
    """Count a run of `number`, and take so many seconds."""
    await _note(number)
    await asyncio.sleep(seconds)
    return number


@task(timeout=300)
async def count_until_released(job: JobContext, number: int) -> int:
    """Count a run of `number`, then count aloud until the key `test:released` is there."""
    await _note(number)
    said = 0
    async with Redis.from_url(os.environ["JOBSTREAM_REDIS_URL"]) as client:
        while not await client.exists(RELEASED):
            await asyncio.sleep(0.2)
            job.log(f"{said}")
            said += 1
    return said


async def _note(number: int) -> None:
    async with Redis.from_url(os.environ["JOBSTREAM_REDIS_URL"]) as client:
        await client.hincrby(RUNS, str(number), 1)
