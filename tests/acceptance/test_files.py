"""Files over HTTP: uploads, downloads by range, what goes when the job goes; in a directory and in a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from jobstream.embedded import ChildRedis, ServerProgram
from jobstream.files import FileStore
from jobstream.storage import Place
from tests.acceptance.service import MAX_FILE_BYTES, Service, running
from tests.acceptance.wire import Json, done, problem, raw, submit
from tests.s3 import make_bucket, s3_server

TASKS = "tests.acceptance.file_tasks,tests.acceptance.acceptance_tasks"
CONTENT = random.Random(3).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    with ChildRedis(server_program, tmp_path_factory.mktemp("r")) as server:
        yield server


@contextlib.contextmanager
def service_at(directory: Path, url: str, place: Place | None = None, **settings: str) -> Iterator[Service]:
    """A service, with its files in the bucket if there is one."""
    if place is not None:
        settings |= {"JOBSTREAM_FILES_URL": place.url, "JOBSTREAM_FILES_ENDPOINT": place.endpoint}
    with running(directory, redis_url=url, JOBSTREAM_TASKS=TASKS, **settings) as service:
        yield service


class Files:
    """The service, and its storage seen from outside."""

    def __init__(self, service: Service, place: Place | None) -> None:
        self.service = service
        self.in_bucket = place is not None
        self.store = FileStore.at(place or Place(directory=str(service.files)))

    def of(self, job_id: str) -> bool:
        """Whether the job owns anything there."""
        return job_id in self.store.owners()


@pytest.fixture(scope="module", params=["directory", "bucket"])
def files(
    request: pytest.FixtureRequest, server: ChildRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    directory = tmp_path_factory.mktemp("service")
    with contextlib.ExitStack() as stack:
        place = None
        if request.param == "bucket":
            place = make_bucket(stack.enter_context(s3_server(directory)), "files")
        service = stack.enter_context(service_at(directory, server.url, place))
        yield Files(service, place)


@pytest.fixture
async def http(files: Files) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=files.service.url, timeout=30) as client:
        yield client


async def upload(http: httpx2.AsyncClient, task: str, **parts: bytes) -> Json:
    """A job with a file, at its end."""
    sent = [(name, ("ä.bin", content, "application/x-test")) for name, content in parts.items()]
    response = await http.post(f"/{task}", files=sent)
    assert response.status_code == 202, response.text
    return await done(http, response.json())


@pytest.mark.parametrize("task", ["copy-loop", "copy-thread", "copy-process"])
async def test_a_file_goes_in_and_comes_out_of_every_executor(http: httpx2.AsyncClient, task: str) -> None:
    job = await upload(http, task, file=CONTENT)
    assert job["status"] == "succeeded", job["error"]
    response = await http.get(job["links"]["result"])
    assert response.status_code == 303
    assert response.headers["location"].startswith(f"/jobs/{job['id']}/files/")
    assert response.json() == job["result"]
    download = await http.get(job["links"]["result"], follow_redirects=True)
    assert download.content == CONTENT
    assert download.headers["content-type"] == "application/x-test"
    assert download.headers["content-disposition"] == (
        "attachment; filename=\"copy of _.bin\"; filename*=UTF-8''copy%20of%20%C3%A4.bin"
    )
    alias = await http.get(f"/jobs/{job['id']}/result")
    assert (alias.status_code, alias.headers["location"]) == (303, response.headers["location"])


async def test_a_submit_that_waits_is_sent_to_the_file(http: httpx2.AsyncClient) -> None:
    response = await http.post("/copy-thread", files={"file": CONTENT}, headers={"Prefer": "wait=20"})
    assert response.status_code == 303
    assert (await http.get(response.headers["location"], follow_redirects=True)).content == CONTENT


async def test_all_files_of_a_job_are_listed_with_their_urls(http: httpx2.AsyncClient) -> None:
    job = await upload(http, "bundle", files=CONTENT)
    assert (await http.get(job["links"]["result"])).json() == job["result"], "more than a file: not a redirect"
    listed = (await http.get(f"/jobs/{job['id']}/files")).json()["files"]
    assert [(file["name"], file["role"], file["size"]) for file in listed] == [
        ("ä.bin", "input", len(CONTENT)),
        ("sizes.csv", "result", len("ä.bin,200000\n".encode())),
        ("empty.json", "result", 2),
    ]
    for file in listed:
        content = (await http.get(file["url"], follow_redirects=True)).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    problem(await http.get(f"/jobs/{job['id']}/files/77"), 404, "file-not-found")
    problem(await http.get("/jobs/nobody/files"), 404, "job-not-found")
    quiet = await done(http, await submit(http, "echo"))
    assert (await http.get(f"/jobs/{quiet['id']}/files")).json() == {"files": []}


async def test_no_path_leads_out_of_the_job(http: httpx2.AsyncClient, files: Files) -> None:
    job, other = [await upload(http, "bundle", files=CONTENT) for _ in range(2)]
    for path in ("..%2f..%2fetc%2fpasswd", f"..%2f{other['id']}%2f1", ".1.part", "1%00", "%2e%2e", "1%0a", "1/1"):
        response = await raw(
            files.service.url,
            f"GET /jobs/{job['id']}/files/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
        )
        assert response.status_code == 404, path


async def test_a_result_that_pretends_to_be_a_file_opens_nothing(http: httpx2.AsyncClient) -> None:
    other = await upload(http, "copy-thread", file=CONTENT)
    for key in (other["result"]["key"], "../x/1", "x/1"):
        job = await done(http, await submit(http, "echo", {"value": other["result"] | {"key": key}}))
        response = await http.get(job["links"]["result"])
        assert (response.status_code, response.json()["key"]) == (200, key)
        assert (await http.get(f"/jobs/{job['id']}/files")).json() == {"files": []}


async def test_with_the_job_its_files_go(http: httpx2.AsyncClient, files: Files) -> None:
    job = await upload(http, "copy-thread", file=CONTENT)
    assert files.of(job["id"])
    assert (await http.delete(f"/jobs/{job['id']}")).status_code == 204
    assert not files.of(job["id"])
    for path in ("files", "files/1"):
        problem(await http.get(f"/jobs/{job['id']}/{path}"), 410, "job-gone")


async def test_what_a_failed_job_has_saved_is_not_shown_and_goes_with_it(
    http: httpx2.AsyncClient, files: Files
) -> None:
    job = await done(http, await submit(http, "save-and-fail"))
    assert job["status"] == "failed"
    assert (await http.get(f"/jobs/{job['id']}/files")).json() == {"files": []}
    await http.delete(f"/jobs/{job['id']}")
    assert not files.of(job["id"])


async def test_an_upload_that_is_cut_leaves_nothing(files: Files) -> None:
    before = files.store.owners().keys()
    head = "POST /bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    with pytest.raises(EOFError):
        await raw(files.service.url, (head + part).encode() + CONTENT, half_close=True)
    await asyncio.to_thread(
        files.service.wait_until, lambda: files.store.owners().keys() <= before, "something is left"
    )


class TestLimits:
    """What a task and the service take."""

    async def test_a_field_takes_what_it_says(self, http: httpx2.AsyncClient) -> None:
        response = await http.post("/pictures", files={"files": ("a.png", b"x" * 1000, "image/png")})
        assert (await done(http, response.json()))["result"] == 1
        for content_type in ("text/html", "application/octet-stream"):
            response = await http.post("/pictures", files={"files": ("a.png", b"x", content_type)})
            problem(response, 415, "unsupported-media-type")
        response = await http.post("/pictures", files={"files": ("a.png", b"x" * 1001, "image/png")})
        problem(response, 413, "payload-too-large")
        response = await http.post("/pictures", files={"data": ("a", b"x" * MAX_FILE_BYTES, "text/plain")})
        problem(response, 422, "invalid-input")

    async def test_the_schema_says_it(self, http: httpx2.AsyncClient) -> None:
        schema = (await http.get("/tasks/pictures")).json()["input_schema"]
        assert schema["properties"]["files"]["x-jobstream-types"] == ["image/*"]
        assert schema["properties"]["files"]["x-jobstream-max-bytes"] == 1000


def limit_file_size(pid: int, size: int) -> None:
    """The process can write no file larger than this: to it, the disk is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def machine(server: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a directory of its own, and limits."""
    url = f"{server.url}{'&' if '?' in server.url else '?'}db=1"  # the other service's workers are not to help
    with service_at(tmp_path_factory.mktemp("machine"), url, JOBSTREAM_FILE_TYPES="text/*, image/png") as service:
        yield service


class TestOneMachine:
    """A directory, and what can be wrong with it."""

    @pytest.fixture
    async def http(self, machine: Service) -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(base_url=machine.url, timeout=30) as client:
            yield client

    async def test_the_service_takes_files_of_these_types_only(self, http: httpx2.AsyncClient) -> None:
        taken = await http.post("/bundle", files={"files": ("a.txt", b"x", "text/plain")})
        assert taken.status_code == 202
        problem(await http.post("/bundle", files={"files": ("a.png", b"x", "image/gif")}), 415)
        problem(await http.post("/pictures", files={"files": ("a.txt", b"x", "text/plain")}), 415)

    async def test_a_file_that_another_machine_keeps_is_named_with_the_reason(
        self, http: httpx2.AsyncClient, machine: Service
    ) -> None:
        for task in ("copy-loop", "copy-thread", "copy-process"):
            response = await http.post(f"/{task}?delay=60", files={"file": ("a.txt", b"x", "text/plain")})
            job = response.json()
            (machine.files / job["id"] / "1").unlink()
            problem(await http.get(f"/jobs/{job['id']}/files/1"), 500, "file-missing")
            await http.post(f"/jobs/{job['id']}/cancel")
            await http.post(f"/jobs/{job['id']}/retry")
            ended = await done(http, job)
            assert ended["error"]["code"] == "file-missing"
            assert "share" in ended["error"]["detail"]

    async def test_a_full_disk_is_said_and_leaves_nothing(self, http: httpx2.AsyncClient, machine: Service) -> None:
        before = machine.stored_files()
        limit_file_size(machine.api_pid, 100_000)
        try:
            response = await http.post("/bundle", files={"files": ("a.txt", CONTENT, "text/plain")})
        finally:
            limit_file_size(machine.api_pid, resource.RLIM_INFINITY)
        problem(response, 507, "storage-full")
        assert machine.stored_files() == before
        response = await http.post("/bundle", files={"files": ("a.txt", CONTENT, "text/plain")})
        assert response.status_code == 202
