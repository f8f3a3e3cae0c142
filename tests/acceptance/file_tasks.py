"""Tasks that take files and give files, one for each executor, and some that do it in ways of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel

from jobstream import FileLimits, JobContext, JobFile, TaskError, task


class Bundle(BaseModel):
    """Several files, and something else."""

    files: list[JobFile]
    count: int


@task(name="copy-loop")
async def copy_loop(job: JobContext, file: JobFile) -> JobFile:
    """On the event loop, piece by piece."""
    assert (await copied_path(job, file)).stat().st_size == file.size
    return await job.save_async(job.files.stream(file), f"copy of {file.name}", file.content_type)


async def copied_path(job: JobContext, file: JobFile) -> Path:
    """The path, without blocking the loop."""
    return await asyncio.to_thread(job.files.path, file)


@task(name="copy-thread")
def copy_thread(job: JobContext, file: JobFile) -> JobFile:
    """In a thread, from an open file."""
    with job.files.open(file) as source:
        return job.save(source, f"copy of {file.name}", file.content_type)


@task(name="copy-process", executor="process")
def copy_process(job: JobContext, file: JobFile) -> JobFile:
    """In a process, by its path."""
    return job.save(job.files.path(file), f"copy of {file.name}", file.content_type)


@task
def bundle(job: JobContext, files: list[JobFile]) -> Bundle:
    """Give back the uploads and two files more, one of them by a writer."""
    with job.files.writer("sizes.csv") as sizes:
        for file in files:
            sizes.put(f"{file.name},{file.size}\n".encode())
    return Bundle(files=[*files, sizes.file, job.save(b"{}", "empty.json")], count=len(files))


@task
async def pictures(
    files: Annotated[list[JobFile], FileLimits(types=("image/*",), max_bytes=1000)], data: JobFile | None = None
) -> int:
    """Take small images only."""
    return len(files)


@task(name="save-and-fail")
def save_and_fail(job: JobContext) -> JobFile:
    """Fail when a file has been saved."""
    job.save(b"x" * 100_000, "x")
    raise TaskError("no")
