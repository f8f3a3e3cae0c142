"""background and background-thread: the two tasks that call functions of somebody's app, after its answer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobstream import JobContext, Task, TaskError, task
from jobstream.call import (
    BACKGROUND,
    BACKGROUND_THREAD,
    NOBODY,
    Arguments,
    Call,
    Callee,
    NotCarried,
    UnknownFunction,
    find_callee,
)
from jobstream.errors import ConfigurationError

TIMEOUT = 3600.0
"""Seconds that a function may take; FastAPI sets no limit. A function of its own limits is a task."""


def with_background_tasks(tasks: Mapping[str, Task], modules: Sequence[str]) -> dict[str, Task]:
    """A worker's tasks and, if there are modules whose functions may be called, ours.

    Raises ConfigurationError when a task has the name of ours, or a module cannot be imported.
    """
    if not modules:
        return dict(tasks)
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ConfigurationError(f"JOBSTREAM_BACKGROUND: module {name!r} cannot be imported: {reason}") from error

    @task(name=BACKGROUND, timeout=TIMEOUT)
    async def background(job: JobContext, call: Call) -> None:
        """Call an `async def` function of the app. What it returns is dropped."""
        callee = _found(call, modules)
        with _arguments(callee, call, job) as given:
            await callee.function(*given.args, **given.kwargs)

    @task(name=BACKGROUND_THREAD, timeout=TIMEOUT)
    def background_thread(job: JobContext, call: Call) -> None:
        """Call a `def` function of the app, in a thread. What it returns is dropped."""
        callee = _found(call, modules)
        with _arguments(callee, call, job) as given:
            callee.function(*given.args, **given.kwargs)

    ours = {each.name: _closed(each) for each in (background, background_thread)}
    if taken := tasks.keys() & ours.keys():
        raise ConfigurationError(f"a worker with JOBSTREAM_BACKGROUND has a task {min(taken)!r}; choose another name")
    return {**tasks, **ours}


def _closed(open_task: Task) -> Task:
    """As it is announced, no input fits: only the code of an app hands over calls, no client."""
    return dataclasses.replace(open_task, input_schema=NOBODY, file_fields=())


def _found(call: Call, modules: Sequence[str]) -> Callee:
    try:
        return find_callee(call.function, modules)
    except UnknownFunction as error:
        raise TaskError(str(error), status=500, code="unknown-function") from error


@contextlib.contextmanager
def _arguments(callee: Callee, call: Call, job: JobContext) -> Iterator[Arguments]:
    """What to call it with. Uploads are open as long as the block runs."""
    with contextlib.ExitStack() as opened:
        uploads: dict[str, Any] = {}
        for upload, file in zip(call.uploads, call.files, strict=True):
            from fastapi import UploadFile  # only a guest's worker needs it, which has it
            from starlette.datastructures import Headers

            source = opened.enter_context(job.files.open(file))
            source.seek(upload.offset)
            arrived = UploadFile(source, size=file.size, filename=file.name, headers=Headers(upload.headers))
            if upload.place is None:
                uploads[upload.parameter] = arrived
            else:
                uploads.setdefault(upload.parameter, []).append(arrived)
        try:
            given = callee.arrived(call.arguments, uploads, job)
        except NotCarried as error:
            raise TaskError(str(error), status=500, code="call-does-not-fit") from error
        yield given
