"""files: each upload's digests, size and lines, in order, and the names of those done."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from jobstream import JobCancelled, JobFile
from jobstream.errors import InvalidInput
from jobstream.files import CHUNK_BYTES
from jobstream_workers.tasks import files
from jobstream_workers.tasks.files import FileReport
from tests.unit.task_bench import Bench


async def run(bench: Bench, uploads: list[JobFile]) -> list[FileReport]:
    result = await asyncio.to_thread(files, bench.job, uploads)
    assert isinstance(result, list)
    return result


async def test_each_file_is_hashed_and_measured(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    content = b"line\n" * CHUNK_BYTES + b"no line feed"
    picture = b"\x89PNG\r\n\x1a\n\0\0"
    reports = await run(
        bench, [await bench.upload(content, "big.csv"), await bench.upload(picture, "picture", "image/png")]
    )
    assert reports == [
        FileReport(
            name="big.csv",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            blake2b=hashlib.blake2b(content).hexdigest(),
            intact=True,
            media_type="text/csv",
            lines=CHUNK_BYTES + 1,
        ),
        FileReport(
            name="picture",
            size=len(picture),
            sha256=hashlib.sha256(picture).hexdigest(),
            blake2b=hashlib.blake2b(picture).hexdigest(),
            intact=True,
            media_type="image/png",
            lines=None,
        ),
    ]
    assert bench.chunks() == [report.model_dump() for report in reports]
    assert bench.logs() == []


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", 0),
        (b"one", 1),
        (b"one\n", 1),
        (b"one\ntwo", 2),
        (b"\n\n", 2),
        (b"x" * (CHUNK_BYTES - 1) + "ä\n".encode(), 1),
        (b"a\n" * (CHUNK_BYTES // 2), CHUNK_BYTES // 2),
        (b"nul\0", None),
        (b"latin \xe9", None),
        (b"cut \xc3", None),
        (b"\xff" + b"x\n" * CHUNK_BYTES, None),
    ],
)
async def test_lines_are_counted_in_text_only(content: bytes, lines: int | None, tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    [report] = await run(bench, [await bench.upload(content)])
    assert report.lines == lines


async def test_a_file_changed_since_the_upload_is_not_intact(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    upload = await bench.upload(b"original", "a.txt")
    bench.store.path(upload).write_bytes(b"0riginal")
    [report] = await run(bench, [upload])
    assert not report.intact
    assert bench.logs() == ["a.txt is not what was uploaded"]


async def test_progress_counts_bytes_and_names_files_as_they_are_done(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    await run(bench, [await bench.upload(b"x" * (2 * CHUNK_BYTES), "a"), await bench.upload(b"yy", "b")])
    total = 2 * CHUNK_BYTES + 2
    seen = [(state.current, state.message, state.items) for state in bench.outbox.states]
    assert seen == [
        (0, None, ()),
        (0, "Reading a", ()),
        (CHUNK_BYTES, "Reading a", ()),
        (2 * CHUNK_BYTES, "Reading a", ()),
        (2 * CHUNK_BYTES, "Reading a", ()),  # a file may have less in it than it said
        (2 * CHUNK_BYTES, "Reading a", ("a",)),
        (2 * CHUNK_BYTES, "Reading b", ("a",)),
        (total, "Reading b", ("a",)),
        (total, "Reading b", ("a",)),
        (total, "Reading b", ("a", "b")),
    ]
    assert {state.total for state in bench.outbox.states} == {total}


async def test_a_cancelled_job_stops_reading(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    upload = await bench.upload(b"x")
    bench.cancelled.set()
    with pytest.raises(JobCancelled):
        files(bench.job, [upload])


def test_no_file_is_not_enough() -> None:
    with pytest.raises(InvalidInput):
        files.parse_input({"files": []})
    assert files.executor == "thread"
    assert files.file_fields == ("files",)
