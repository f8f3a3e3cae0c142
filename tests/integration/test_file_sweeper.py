"""The sweep of files: what no job owns goes, what a job owns, or will own, never does."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.files import FileStore
from jobstream.queue import Queue, SubmitOptions
from jobstream.storage import Place
from jobstream_workers.file_sweeper import ORPHAN_SECONDS, FileSweeper
from tests.s3 import make_bucket, s3_server

_buckets = count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(params=["directory", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "bucket":
        return FileStore.at(make_bucket(request.getfixturevalue("s3"), f"sweep-{next(_buckets)}"))
    return FileStore.at(Place(directory=str(tmp_path / "files")))


async def keep(files: FileStore, *job_ids: str) -> None:
    for job_id in job_ids:
        await files.of(job_id).save_async(b"x", "a")


def later() -> float:
    """When whatever has no owner is old."""
    return time.time() + ORPHAN_SECONDS + 60


async def test_what_a_crash_has_left_goes_and_nothing_else(files: FileStore, client: ArqRedis) -> None:
    queue = Queue(client)
    await keep(files, "waits", "runs", "arrives", "crashed")
    await queue.submit("words", {}, job_id="waits", options=SubmitOptions(delay=60))
    await queue.submit("words", {}, job_id="runs")
    await client.set(keys.upload("arrives"), "1", ex=60)
    record = cast("Awaitable[int]", client.hset(keys.record("crashed"), "log_bytes", "1"))
    await record  # a late write: it is no record
    assert await FileSweeper(files, client).tidy([]) == [], "the upload may be under way"
    await client.delete(keys.FILES_SWEPT)
    assert await FileSweeper(files, client, clock=later).tidy([]) == ["crashed"]
    assert files.owners().keys() == {"waits", "runs", "arrives"}
    await client.delete(keys.FILES_SWEPT)
    assert await FileSweeper(files, client, clock=later).tidy([]) == []


async def test_with_its_record_a_jobs_files_go_at_once(files: FileStore, client: ArqRedis) -> None:
    await keep(files, "expired", "lives")
    await Queue(client).submit("words", {}, job_id="lives")
    await FileSweeper(files, client).tidy(["expired", "had-no-files"])
    assert files.owners().keys() == {"lives"}


async def test_a_directory_that_is_not_there_yet_is_no_error(client: ArqRedis, tmp_path: Path) -> None:
    assert await FileSweeper(FileStore(tmp_path / "none"), client).tidy(["gone"]) == []


async def test_a_bucket_is_looked_through_by_one_of_all_workers(s3: str, client: ArqRedis) -> None:
    files = FileStore.at(make_bucket(s3, "one"))
    await keep(files, "crashed")
    first, second = (FileSweeper(files, client, clock=later) for _ in range(2))
    assert await first.tidy([]) == ["crashed"]
    await keep(files, "crashed")
    assert await second.tidy([]) == []
