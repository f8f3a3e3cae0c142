"""Files of jobs, in a directory and in a bucket: what is kept is whole, what fails leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import httpx2
import pytest

from jobstream import JobFile
from jobstream.errors import ConfigurationError, FileMissing, StorageFull, StorageUnavailable
from jobstream.files import FileStore, disposition, file_result, files_in, is_of_type, media_type
from jobstream.s3 import PART_BYTES
from jobstream.storage import LocalStorage, Place, open_storage, storage_error
from tests.s3 import make_bucket, s3_server

_buckets = count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "bucket":
        return make_bucket(request.getfixturevalue("s3"), f"unit-{next(_buckets)}")
    return Place(directory=str(tmp_path / "files"))


@pytest.fixture
def store(place: Place) -> FileStore:
    return FileStore.at(place)


def left(store: FileStore) -> set[str]:
    """Everything that is in the storage, wherever; of a bucket also uploads that have not ended."""
    place = store.storage.place
    if not place.url:
        return {str(path.relative_to(place.directory)) for path in Path(place.directory).rglob("*") if path.is_file()}
    bucket = f"{place.endpoint}/{place.url.removeprefix('s3://').partition('/')[0]}"
    lists = [
        httpx2.get(bucket, params=wanted).raise_for_status().text for wanted in ({"list-type": "2"}, {"uploads": ""})
    ]
    return {key for text in lists for key in re.findall("<Key>(.*?)</Key>", text)}


def content_of(store: FileStore, file: JobFile) -> bytes:
    with store.open(file) as source:
        return source.read()


async def test_what_was_uploaded_is_read_again_from_anywhere(store: FileStore) -> None:
    content = random.Random(1).randbytes(300_000)
    async with store.create("j1", 1, name="../a b.bin", content_type="text/x-test") as writer:
        for start in range(0, len(content), 70_000):
            await writer.write(content[start : start + 70_000])
    file = writer.file
    assert (file.name, file.size, file.content_type, file.key) == ("a b.bin", 300_000, "text/x-test", "j1/1")
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    mine = store.of("j1")
    with mine.open(file) as source:
        assert source.read(10) == content[:10]
        assert source.seek(-5, os.SEEK_END) == 299_995
        assert source.read() == content[-5:]
        source.seek(1000)
        assert source.read(3) == content[1000:1003]
    assert b"".join([piece async for piece in mine.stream(file, 100_000)]) == content
    path = mine.path(file)
    assert path.read_bytes() == content
    assert mine.path(file) == path
    mine.close()
    assert path.exists() is (not store.storage.place.url), "a copy goes with the attempt, the file itself does not"


async def test_a_file_larger_than_a_part_is_whole(store: FileStore) -> None:
    content = random.Random(2).randbytes(PART_BYTES * 2 + 12_345)
    mine = store.of("j1")
    file = await mine.save_async(content, "large.bin")
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with mine.open(file) as source:
        assert source.read() == content
    assert len(left(store)) == 1


@pytest.mark.parametrize("size", [0, PART_BYTES * 2 + 1])
async def test_a_write_that_fails_leaves_nothing(store: FileStore, size: int) -> None:
    async def write() -> None:
        async with store.create("j1", 1, name="a", content_type=None) as writer:
            for _ in range(0, size, PART_BYTES):
                await writer.write(bytes(min(size, PART_BYTES)))
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        await write()
    assert left(store) == set()
    with pytest.raises(FileMissing):
        store.open(JobFile(name="a", size=size, sha256="", key="j1/1"))


async def test_nobody_sees_half_a_file(store: FileStore) -> None:
    half = JobFile(name="a", size=3, sha256="", key="j1/1")
    async with store.create("j1", 1, name="a", content_type=None) as writer:
        await writer.write(b"abc")
        for look in (store.open, store.path):
            with pytest.raises(FileMissing):
                look(half)
    assert content_of(store, half) == b"abc"


async def test_a_task_saves_paths_bytes_files_and_pieces(store: FileStore, tmp_path: Path) -> None:
    mine = store.of("j1")
    (tmp_path / "report.csv").write_bytes(b"1,2\n")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1,2"
        yield b"\n"

    saved = [
        await asyncio.to_thread(mine.save, tmp_path / "report.csv"),
        await asyncio.to_thread(mine.save, str(tmp_path / "report.csv"), "x/../report.csv"),
        await asyncio.to_thread(mine.save, bytearray(b"1,2\n"), "report.csv"),
        await asyncio.to_thread(mine.save, io.BytesIO(b"1,2\n"), "report.csv"),
        await asyncio.to_thread(mine.save, iter([b"1,2", b"\n"]), "report.csv"),
        await mine.save_async(pieces(), "report.csv"),
    ]
    assert {(file.name, file.size, file.content_type) for file in saved} == {("report.csv", 4, "text/csv")}
    assert {content_of(mine, file) for file in saved} == {b"1,2\n"}
    assert len({file.key for file in saved}) == len(saved)
    with pytest.raises(ValueError, match="name"):
        mine.save(b"x")
    with pytest.raises(TypeError, match="rb"):
        mine.save(io.StringIO("text"), "a.txt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all jobs"):
        store.save(b"x", "a")


async def test_only_the_files_of_the_job_are_removed(store: FileStore) -> None:
    kept, removed = [await store.of(job_id).save_async(b"x", "a") for job_id in ("j1", "j10")]
    assert store.owners().keys() == {"j1", "j10"}
    store.remove("j10")
    store.remove("j10")
    store.remove("nobody")
    assert store.owners().keys() == {"j1"}
    assert content_of(store, kept) == b"x"
    with pytest.raises(FileMissing, match="j10"):
        store.open(removed)


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../j1/1", "j1/../../x", "j1/1/2", "j1/.1.part", "j2/1", "j1/1\n", "j1/١", "j1//1", "j1/1\0"],
    ids=ascii,
)
async def test_an_input_opens_nothing_but_the_files_of_its_job(store: FileStore, key: str) -> None:
    await store.of("j2").save_async(b"secret", "a")
    mine = store.of("j1")
    file = JobFile(name="a", size=1, sha256="", key=key)
    for look in (mine.open, mine.path):
        with pytest.raises(ValueError, match="not a key"):
            look(file)


def test_a_symbolic_link_is_no_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "files" / "j1").mkdir(parents=True)
    (tmp_path / "files" / "j1" / "1").symlink_to(tmp_path / "secret")
    (tmp_path / "files" / "j1" / ".2.part").symlink_to(tmp_path / "target")
    (tmp_path / "files" / "j2").symlink_to(tmp_path)
    store = FileStore(tmp_path / "files")
    link = JobFile(name="a", size=1, sha256="", key="j1/1")
    with pytest.raises(StorageUnavailable):
        store.open(link)
    with pytest.raises(FileMissing):
        store.path(link)
    with pytest.raises(StorageUnavailable), store.create("j1", 2, name="a", content_type=None):
        pytest.fail("it must not be opened")
    assert not (tmp_path / "target").exists()
    assert store.owners().keys() == {"j1"}
    store.remove("j2")
    assert (tmp_path / "secret").read_text() == "x"


def test_no_room_is_told_from_other_trouble() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert isinstance(storage_error(OSError(code, "no")), StorageFull)
    assert isinstance(storage_error(PermissionError(errno.EACCES, "no")), StorageUnavailable)


def test_a_bucket_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobstream.s3.RETRY_SECONDS", 1)
    store = FileStore.at(Place(url="s3://nowhere", endpoint="http://127.0.0.1:9", region="us-east-1"))
    file = JobFile(name="a", size=1, sha256="", key="j1/1")
    with pytest.raises(StorageUnavailable):
        store.open(file)
    with pytest.raises(StorageUnavailable):
        store.remove("j1")
    for count_of_parts in (0, 3):
        with pytest.raises(StorageUnavailable):
            store.of("j1").save(iter([bytes(PART_BYTES)] * count_of_parts), "a")


@pytest.mark.parametrize("url", ["s3:bucket", "s3://", "https://bucket/x", "gs://b", "s3://b?x=1"])
def test_what_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="JOBSTREAM_FILES_URL"):
        open_storage(Place(url=url))


def test_a_place_reaches_another_process_whole() -> None:
    place = Place("/a b/ä", "s3://b/c", "http://localhost:1", "eu-central-1")
    assert Place.load(place.dump()) == place
    assert isinstance(open_storage(Place("/tmp")), LocalStorage)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.txt", 'attachment; filename="a.txt"'),
        ('a"\\%.txt', "attachment; filename=\"a___.txt\"; filename*=UTF-8''a%22%5C%25.txt"),
        ("ä;.txt", "attachment; filename=\"_;.txt\"; filename*=UTF-8''%C3%A4%3B.txt"),
        ("\udc80", "attachment; filename=\"_\"; filename*=UTF-8''%3F"),
    ],
    ids=ascii,
)
def test_a_name_cannot_leave_its_header(name: str, header: str) -> None:
    assert disposition(name) == header


def test_a_media_type_is_one_or_is_not_repeated() -> None:
    assert media_type("text/csv; charset=utf-8") == "text/csv; charset=utf-8"
    for wrong in (None, "", "text", "text/html\r\nX: y", "ä/b", "text/html, x"):
        assert media_type(wrong) == "application/octet-stream"
    assert is_of_type("Image/PNG; x=1", ["image/*"])
    assert not is_of_type("imagex/png", ["image/*"])
    assert not is_of_type(None, ["text/csv"])


def test_a_result_is_a_file_only_if_it_is_one_of_its_job() -> None:
    file = JobFile(name="a", size=1, sha256="0" * 64, key="j1/1")
    assert file_result(file.model_dump_json().encode(), "j1") == file
    for other in (
        file.model_copy(update={"key": "j2/1", "name": "j1"}),
        file.model_copy(update={"key": "j1/../j2/1"}),
        file.model_copy(update={"sha256": "x"}),
        file.model_copy(update={"size": -1}),
    ):
        assert file_result(other.model_dump_json().encode(), "j1") is None
    assert file_result(b'{"name":"j1"}', "j1") is None
    assert file_result(b"null", "j1") is None
    assert [*files_in({"a": [{"b": file.model_dump()}, 1], "c": file.model_dump() | {"x": 1}}, "j1")] == [file]
