"""Downloads: ranges, validators and headers, HEAD, tickets and tenants; from a directory and from a bucket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import httpx2
import pytest
import pytest_asyncio

from jobstream import JobFile
from jobstream.caller import Scope
from jobstream.errors import FileMissing
from jobstream.fake import FakeSource
from jobstream.files import FileStore
from jobstream.job import new_job_id
from jobstream.storage import Place
from tests.acceptance.guarded import Guarded, guarded
from tests.acceptance.wire import problem
from tests.s3 import make_bucket, s3_server

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'

in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


class Downloads(NamedTuple):
    """A service with a job of `acme` that has a file."""

    service: Guarded
    store: FileStore
    key: str
    job_id: str
    linked: bool

    @property
    def path(self) -> str:
        return f"/jobs/{self.job_id}/files/1"

    async def add(self, content: bytes, *, owner: str = "acme", **more: str) -> str:
        """Another job with a file; its id."""
        job_id = new_job_id()
        async with self.store.create(job_id, 1, name="ä.bin", content_type="text/html") as writer:
            await writer.write(content)
        file = writer.file.model_dump() | more
        await self.service.queue.submit_once("quiet", {}, job_id=job_id, owner=owner, files=[file])
        return job_id

    async def get(self, path: str | None = None, method: str = "GET", **headers: str) -> httpx2.Response:
        async with self.service.http(self.key) as http:
            return await http.request(
                method, path or self.path, headers={name.replace("_", "-"): value for name, value in headers.items()}
            )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["directory", "bucket", "linked bucket"])
async def downloads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Downloads]:
    place = Place(directory=str(tmp_path_factory.mktemp("files")))
    if request.param != "directory":
        place = make_bucket(request.getfixturevalue("s3"), request.param.replace(" ", "-"))
    linked = request.param.startswith("linked")
    async with guarded(
        FakeSource(),
        files_dir=place.directory or ".",
        files_url=place.url,
        files_endpoint=place.endpoint,
        files_region=place.region,
        files_link_seconds=60 if linked else 0,
    ) as service:
        made = Downloads(service, FileStore.at(place), await service.key("acme", Scope.READ), "", linked)
        yield made._replace(job_id=await made.add(CONTENT))


@in_one_loop
class TestTheFile:
    """What every answer with a file has."""

    async def test_the_whole_file_says_what_it_is_and_is_never_shown(self, downloads: Downloads) -> None:
        response = await downloads.get()
        if downloads.linked:
            assert (response.status_code, response.headers["cache-control"]) == (303, "no-store")
            assert "X-Amz-Signature" in response.headers["location"]
            async with httpx2.AsyncClient() as http:  # without our key: the link is enough
                response = await http.get(response.headers["location"])
        else:
            assert response.headers["etag"] == ETAG
            assert response.headers["accept-ranges"] == "bytes"
            assert response.headers["cache-control"] == "private, no-cache"
            assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert response.headers["x-content-type-options"] == "nosniff"
            digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
            assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert (response.status_code, response.content) == (200, CONTENT)
        assert response.headers["content-length"] == str(SIZE)
        assert response.headers["content-type"] == "text/html"
        assert response.headers["content-disposition"] == "attachment; filename=\"_.bin\"; filename*=UTF-8''%C3%A4.bin"

    async def test_a_head_says_the_same_without_the_file(self, downloads: Downloads) -> None:
        response = await downloads.get(method="HEAD")
        assert (response.status_code, response.content) == (200, b"")
        assert (response.headers["content-length"], response.headers["etag"]) == (str(SIZE), ETAG)
        assert response.headers["content-disposition"].startswith("attachment")
        assert (await downloads.get(method="HEAD", if_none_match=ETAG)).status_code == 304
        assert (await downloads.get(f"{downloads.path}7", method="HEAD")).status_code == 404

    @pytest.mark.parametrize("known", [ETAG, f'"x", {ETAG}', f"W/{ETAG}", "*"])
    async def test_a_file_that_is_known_is_not_sent_again(self, downloads: Downloads, known: str) -> None:
        response = await downloads.get(if_none_match=known)
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", ETAG)
        assert (await downloads.get(if_none_match='"other"')).status_code == (303 if downloads.linked else 200)

    async def test_other_methods_are_refused(self, downloads: Downloads) -> None:
        response = await downloads.get(method="PUT")
        problem(response, 405, "method-not-allowed")
        assert response.headers["allow"] == "GET, HEAD"


@in_one_loop
@pytest.mark.parametrize("downloads", ["directory", "bucket"], indirect=True)
class TestRanges:
    """RFC 9110, section 14."""

    @pytest.mark.parametrize(
        ("wanted", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=0-99", 0, 100),
            ("bytes=100-", 100, SIZE),
            (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE),
            ("bytes=-1", SIZE - 1, SIZE),
            (f"bytes=-{SIZE + 1}", 0, SIZE),
            ("bytes=300000-700000", 300000, 700001),
            ("BYTES=5-6", 5, 7),
        ],
    )
    async def test_a_range_is_what_was_asked_for(
        self, downloads: Downloads, wanted: str, start: int, stop: int
    ) -> None:
        response = await downloads.get(range=wanted)
        assert (response.status_code, response.content) == (206, CONTENT[start:stop])
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert response.headers["content-length"] == str(stop - start)
        assert response.headers["etag"] == ETAG

    @pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
    async def test_bytes_that_are_not_there_are_416(self, downloads: Downloads, wanted: str) -> None:
        response = await downloads.get(range=wanted)
        problem(response, 416, "range-not-satisfiable")
        assert response.headers["content-range"] == f"bytes */{SIZE}"

    @pytest.mark.parametrize(
        "wanted",
        ["bytes=", "bytes=5-4", "bytes=a-b", "lines=0-5", "bytes=0-1,5-6", "0-5", "bytes=-", f"bytes={'9' * 30}-"],
    )
    async def test_what_is_no_range_or_several_gets_all(self, downloads: Downloads, wanted: str) -> None:
        response = await downloads.get(range=wanted)
        assert (response.status_code, response.content) == (200, CONTENT)

    @pytest.mark.parametrize(
        ("known", "status"),
        [(ETAG, 206), ('"other"', 200), (f"W/{ETAG}", 200), ("Sat, 21 Nov 2026 06:40:00 GMT", 200)],
    )
    async def test_a_range_of_another_file_is_not_sent(self, downloads: Downloads, known: str, status: int) -> None:
        response = await downloads.get(range="bytes=0-1", if_range=known)
        assert response.status_code == status
        assert response.content == (CONTENT[:2] if status == 206 else CONTENT)

    async def test_a_download_goes_on_where_it_was_cut(self, downloads: Downloads) -> None:
        first = (await downloads.get(range="bytes=0-499999")).content
        rest = await downloads.get(range=f"bytes={len(first)}-", if_range=ETAG)
        assert first + rest.content == CONTENT

    async def test_an_empty_file_has_no_ranges(self, downloads: Downloads) -> None:
        path = f"/jobs/{await downloads.add(b'')}/files/1"
        whole = await downloads.get(path)
        assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"", "0")
        for wanted in ("bytes=0-", "bytes=-5"):
            problem(await downloads.get(path, range=wanted), 416, "range-not-satisfiable")


@in_one_loop
async def test_what_was_said_of_a_file_cannot_break_the_answer(downloads: Downloads) -> None:
    job_id = await downloads.add(b"x", content_type="text/html\r\nSet-Cookie: a=b", name='a"\r\nX: y')
    response = await downloads.get(f"/jobs/{job_id}/files/1", method="HEAD")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in response.headers
    assert "x" not in response.headers


@in_one_loop
async def test_a_ticket_is_enough_for_its_jobs_files_and_for_no_others(downloads: Downloads) -> None:
    other = await downloads.add(b"x")
    async with downloads.service.http(downloads.key) as http:
        ticket = (await http.post(f"/jobs/{downloads.job_id}/ticket")).json()["ticket"]
    async with downloads.service.http(None) as http:
        for path in (f"/jobs/{downloads.job_id}/files", downloads.path):
            assert (await http.get(f"{path}?ticket={ticket}")).status_code in (200, 303)
            assert (await http.get(path)).status_code == 401
        assert (await http.get(f"/jobs/{other}/files/1?ticket={ticket}")).status_code == 401


@in_one_loop
async def test_files_of_another_tenant_never_were(downloads: Downloads) -> None:
    theirs = await downloads.add(b"secret", owner="globex")
    for path in (f"/jobs/{theirs}/files/1", f"/jobs/{theirs}/files"):
        for method in ("GET", "HEAD"):
            assert (await downloads.get(path, method=method)).status_code == 404


@in_one_loop
async def test_a_file_that_is_not_in_the_storage_is_said_before_anything_is_sent(downloads: Downloads) -> None:
    job_id = await downloads.add(b"x")
    await asyncio.to_thread(downloads.store.remove, job_id)
    assert (await downloads.get(f"/jobs/{job_id}/files/1", method="HEAD")).status_code == 500
    if not downloads.linked:  # there the bucket says so
        problem(await downloads.get(f"/jobs/{job_id}/files/1"), 500, "file-missing")
    with pytest.raises(FileMissing):
        downloads.store.open(JobFile(name="", size=1, sha256="", key=f"{job_id}/1"))
