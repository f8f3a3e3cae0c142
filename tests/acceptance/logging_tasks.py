"""Tasks that speak to the log, each from another place."""

from __future__ import annotations

import asyncio
import logging
import threading

import structlog

from jobstream.task import task

logger = logging.getLogger("shop.orders")


@task
async def says_in_loop(secret: str) -> int:
    """From a coroutine, by structlog, and from a thread that it starts."""
    logger.info("in the loop")
    structlog.get_logger("shop.orders").info("by structlog", order=7)
    await asyncio.to_thread(logger.info, "in a thread of its own")
    return len(secret)


@task
def says_in_thread(secret: str) -> int:
    """From a thread of the worker's."""
    logger.info("in a thread")
    return len(secret)


@task(executor="process")
def says_in_process(secret: str) -> int:
    """From a child process, and from a thread in it."""
    logger.info("in a process")
    thread = threading.Thread(target=logger.warning, args=("in a thread of a process",))
    thread.start()
    thread.join()
    structlog.get_logger("shop.orders").info("by structlog in a process")
    logger.debug("too quiet")
    return len(secret)


@task
async def fails(secret: str) -> int:
    """Raises."""
    raise LookupError("no such order")
