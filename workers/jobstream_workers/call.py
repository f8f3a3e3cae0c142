"""One call of a task's function: the input checked before, the result after, and a name for whatever goes wrong."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import pydantic

from jobstream.cancellation import Flag
from jobstream.context import JobContext, text
from jobstream.errors import (
    FileMissing,
    InvalidInput,
    InvalidOutput,
    JobCancelled,
    Retry,
    StorageFull,
    StorageUnavailable,
    TaskError,
    TaskRaised,
)
from jobstream.retry import RetryPolicy
from jobstream.task import Task, field_errors

DETAIL_LENGTH = 8_192
"""Characters of an exception's message that are kept: the rest is data that got into it."""

NEVER = RetryPolicy(retry_on=())
"""Input and result are as wrong the next time."""

OF_FILES = (FileMissing, StorageFull, StorageUnavailable)
"""What `job.files` and `job.save` raise: the storage is at fault, not the task."""

Asked = Callable[[], bool]
"""Whether somebody told the attempt to stop: only then is a cancellation what it says."""


def call(task: Task, data: object, job: JobContext | None, cancelled: Flag) -> bytes:
    """Run a `def` task in this thread; give its result as JSON. `job`: if the function asks for it.

    Raises InvalidInput, InvalidOutput, TaskError, TaskRaised; only if `cancelled` is set also JobCancelled and
    CancelledError.
    """
    arguments = _arguments(task, data, job, cancelled.is_set)
    try:
        value = task.function(**arguments)
    except (TaskError, Retry, *OF_FILES):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a task ends its job, never the worker
        if _is_cancellation(error, cancelled.is_set):
            raise
        raise task_raised(error, task.retry) from error
    return _result(task, value, cancelled.is_set)


async def call_async(task: Task, data: object, job: JobContext | None, cancelled: Flag) -> bytes:
    """The same for an `async def` task; also stopped by the cancellation of the asyncio task it runs in."""
    current = asyncio.current_task()
    assert current is not None
    before = current.cancelling()

    def asked() -> bool:
        return cancelled.is_set() or current.cancelling() > before

    arguments = _arguments(task, data, job, asked)
    try:
        value = await task.function(**arguments)
    except (TaskError, Retry, *OF_FILES):
        raise
    except BaseException as error:
        if _is_cancellation(error, asked):
            raise
        raise task_raised(error, task.retry) from error
    return _result(task, value, asked)


def task_raised(error: BaseException, policy: RetryPolicy = NEVER) -> TaskRaised:
    """An exception of user code as data, and whether it is worth another attempt."""
    described = traceback.TracebackException.from_exception(error)  # survives a broken __str__
    return TaskRaised(
        type(error).__name__, _cut(described), text("".join(described.format())), retryable=policy.admits(error)
    )


def _arguments(task: Task, data: object, job: JobContext | None, asked: Asked) -> dict[str, Any]:
    try:
        return task.arguments(task.parse_input(data), job)
    except (InvalidInput, TaskError):
        raise
    except BaseException as error:  # validators are user code too
        if _is_cancellation(error, asked):
            raise
        raise task_raised(error) from error


def _result(task: Task, value: object, asked: Asked) -> bytes:
    try:
        return task.dump_result(value)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{item['pointer'] or 'the result'}: {item['detail']}" for item in field_errors(error))
        raise InvalidOutput(f"The result of task {task.name!r} is not valid: {_cut(wrong)}") from error
    except Exception as error:
        described = _cut(traceback.TracebackException.from_exception(error))
        raise InvalidOutput(f"The result of task {task.name!r} cannot be written as JSON: {described}") from error
    except BaseException as error:
        if _is_cancellation(error, asked):
            raise
        raise task_raised(error) from error


def _is_cancellation(error: BaseException, asked: Asked) -> bool:
    return isinstance(error, JobCancelled | asyncio.CancelledError) and asked()


def _cut(detail: object) -> str:
    string = text(detail)
    return string if len(string) <= DETAIL_LENGTH else string[:DETAIL_LENGTH] + "…"
