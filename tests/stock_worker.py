"""A stock arq worker as a process of its own: `python -m tests.stock_worker REDIS_URL`, until SIGTERM."""

from __future__ import annotations

import sys
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Worker
from redis.asyncio import ConnectionPool

from jobstream.serialize import deserialize, serialize
from tests.worker_tasks import append


async def note(ctx: dict[Any, Any], path: str) -> str:
    """As the task of that name."""
    append(path, f"{ctx['job_id']} stock")
    return "noted"


def stock_client(url: str) -> ArqRedis:
    """arq's own client, with the serializer that both sides use."""
    return ArqRedis(ConnectionPool.from_url(url), job_serializer=serialize, job_deserializer=deserialize)


def main(url: str) -> None:
    """Run it."""
    Worker(
        [note],
        redis_pool=stock_client(url),
        max_jobs=20,
        poll_delay=0.02,
        job_completion_wait=10,
        job_serializer=serialize,
        job_deserializer=deserialize,
    ).run()


if __name__ == "__main__":
    main(sys.argv[1])
