"""Uploads: any number of files arrive whole, a refused request leaves none of them behind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.acceptance.service import MAX_BODY_BYTES, MAX_FILE_BYTES, MAX_FILES, Service
from tests.acceptance.wire import Json, done, pointers, problem, raw

BOUNDARY = "frontier"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, *, file: str | None = None, head: str = "") -> bytes:
    """One part, with the headers as they stand here."""
    disposition = f'form-data; name="{name}"' + ("" if file is None else f'; filename="{file}"')
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{head}\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def upload(http: httpx2.AsyncClient, path: str, *parts: bytes, end: bytes = END) -> httpx2.Response:
    """Post parts as they stand."""
    return await http.post(path, content=b"".join(parts) + end, headers=MULTIPART)


@pytest.fixture
async def nothing_is_left(http: httpx2.AsyncClient, service: Service) -> AsyncIterator[None]:
    """No job and no file may come of a refused upload."""

    async def jobs() -> set[str]:
        return {job["id"] for job in (await http.get("/jobs?limit=1000")).json()["jobs"]}

    before, stored = await jobs(), service.stored_files()
    yield
    newest = max(before, default="")  # ids rise; when one of a full page expires, an older one comes in
    assert not {job_id for job_id in await jobs() if job_id > newest}
    # The answer comes before the files are gone, where there is nobody to be answered.
    await asyncio.to_thread(service.wait_until, lambda: service.stored_files() <= stored, "files are left")


async def test_several_files_and_fields_arrive_whole_and_in_order(http: httpx2.AsyncClient) -> None:
    contents = [b"", b"one", bytes(range(256)) * 1_000, b"--frontier\r\n--\r\n"]
    files = [("files", (f"{number}.bin", content, "text/x-test")) for number, content in enumerate(contents)]
    response = await http.post("/measure", files=files, data={"label": "mine"})
    assert response.status_code == 202, response.text
    ended = await done(http, response.json())
    assert ended["result"] == [
        {
            "name": f"{number}.bin",
            "size": len(content),
            "read": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "content_type": "text/x-test",
        }
        for number, content in enumerate(contents)
    ]


async def test_the_built_in_files_task_tells_which_are_processed(http: httpx2.AsyncClient) -> None:
    files = [("files", ("a.txt", b"a\n")), ("files", ("b.txt", b"b\nb\n"))]
    ended = await done(http, (await http.post("/files", files=files)).json())
    assert ended["progress"]["items"] == ["a.txt", "b.txt"]
    assert [report["lines"] for report in ended["result"]] == [1, 2]


async def test_a_body_in_many_small_pieces_is_the_same_body(http: httpx2.AsyncClient) -> None:
    body = part("label", "ä".encode()) + part("files", b"\r\n--front\r\n", file="é.txt") + END

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(len(body)):
            yield body[start : start + 1]

    response = await http.post("/measure", content=pieces(), headers=MULTIPART)
    assert response.status_code == 202, response.text
    result = (await done(http, response.json()))["result"]
    assert [(file["name"], file["size"]) for file in result] == [("é.txt", 11)]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\temp\\\\x.txt", "x.txt"),
        ("/", "unnamed"),
        ("..", ".."),
        ("a\x00b", "ab"),
        ("x" * 1_000, "x" * 255),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "gpj.exe"),
    ],
    ids=ascii,
)
async def test_a_file_name_is_only_a_name(http: httpx2.AsyncClient, service: Service, sent: str, kept: str) -> None:
    response = await upload(http, "/measure", part("files", b"x", file=sent))
    assert response.status_code == 202, response.text
    job = await done(http, response.json())
    assert (job["status"], job["result"][0]["name"]) == ("succeeded", kept)
    assert {path for path in service.stored_files() if job["id"] in path} == {job["id"], f"{job['id']}/1"}


async def test_one_file_for_a_field_of_one_and_none_for_an_optional_one(http: httpx2.AsyncClient) -> None:
    one = await done(http, (await http.post("/measure-one", files={"file": b"123"})).json())
    assert one["result"]["read"] == 3
    without = await http.post("/measure-maybe", json={"note": "n"})
    assert (await done(http, without.json()))["result"] is None
    empty_input = await upload(http, "/measure-maybe", part("note", b"n"), part("file", b"", file=""))
    assert (await done(http, empty_input.json()))["result"] is None
    given = await http.post("/measure-maybe", files={"file": b"12"}, data={"note": "n"})
    assert (await done(http, given.json()))["result"]["read"] == 2


async def test_multipart_without_files_is_a_form(http: httpx2.AsyncClient) -> None:
    response = await upload(http, "/order", part("articles", b'{"name": "pen"}'), part("price", b"2"))
    assert (await done(http, response.json()))["result"]["price"] == 2


@pytest.mark.usefixtures("nothing_is_left")
class TestRefused:
    """Requests of which nothing may be left."""

    async def test_a_file_for_a_task_without_files_is_422(self, http: httpx2.AsyncClient) -> None:
        members = problem(await http.post("/echo", files={"value": b"x"}), 422, "invalid-input")
        assert pointers(members) == ["/value"]

    async def test_a_file_in_an_unknown_field_is_422(self, http: httpx2.AsyncClient) -> None:
        files = [("files", b"good"), ("fiels", b"bad")]
        members = problem(await http.post("/measure", files=files), 422, "invalid-input")
        assert pointers(members) == ["/fiels"]
        assert "files" in members["detail"]

    async def test_several_files_for_a_field_of_one_are_422(self, http: httpx2.AsyncClient) -> None:
        files = [("file", b"1"), ("file", b"2")]
        members = problem(await http.post("/measure-one", files=files), 422, "invalid-input")
        assert pointers(members) == ["/file"]

    async def test_a_missing_file_is_422(self, http: httpx2.AsyncClient) -> None:
        for response in (
            await http.post("/measure", files={"label": (None, b"x")}),
            await http.post("/measure", json={"label": "x"}),
            await http.post("/measure", json={"files": []}),
            await upload(http, "/measure", part("files", b"", file="")),
        ):
            assert pointers(problem(response, 422, "invalid-input")) == ["/files"]

    async def test_an_invalid_field_beside_good_files_is_422(self, http: httpx2.AsyncClient) -> None:
        files = [("files", b"x" * 100_000)]
        members = problem(await http.post("/measure", files=files, data={"lable": "x"}), 422, "invalid-input")
        assert pointers(members) == ["/lable"]

    @pytest.mark.parametrize("shape", ["one", "list", "text"])
    async def test_json_cannot_name_files_of_other_jobs(self, http: httpx2.AsyncClient, shape: str) -> None:
        job = await done(http, (await http.post("/measure", files={"files": b"private"})).json())
        reference = {"name": "x", "size": 7, "sha256": "0" * 64, "key": f"{job['id']}/1"}
        bodies: dict[str, Json] = {
            "one": {"file": reference},
            "list": {"files": [reference]},
            "text": {"file": f"{job['id']}/1"},
        }
        path = "/measure" if shape == "list" else "/measure-one"
        problem(await http.post(path, json=bodies[shape]), 422, "invalid-input")
        form = {name: str(value) for name, value in bodies[shape].items()}
        problem(await http.post(path, data=form), 422, "invalid-input")
        problem(await http.post(path, files={name: (None, text) for name, text in form.items()}), 422, "invalid-input")
        assert (await http.delete(job["links"]["self"])).status_code == 204

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            part("files", b"x", file="a"),  # no end
            part("files", b"x", file="a")[:-5],
            part("files", b"x", file="a")[:30],
            b"--frontier\r\n",
            b"no boundary at all",
            b"--frontier\r\n\r\nno headers\r\n" + END,
            b'--frontier\r\nContent-Disposition: attachment; name="files"\r\n\r\nx\r\n' + END,
            b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
            b"--frontier\r\nContent-Disposition form-data\r\n\r\nx\r\n" + END,
            part("label", b"\xff") + part("files", b"x", file="a") + END,
            part("files", b"content without a name", file="") + END,
        ],
    )
    async def test_a_body_that_is_not_multipart_is_400(self, http: httpx2.AsyncClient, body: bytes) -> None:
        problem(await upload(http, "/measure", body, end=b""), 400, "malformed-body")

    @pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 1_000], ids=["no", "empty", "long"])
    async def test_a_boundary_that_cannot_be_one_is_400(self, http: httpx2.AsyncClient, boundary: str) -> None:
        headers = {"Content-Type": "multipart/form-data" + boundary}
        problem(await http.post("/measure", content=b"x", headers=headers), 400, "malformed-body")

    async def test_headers_of_a_part_are_limited(self, http: httpx2.AsyncClient) -> None:
        one = part("files", b"x", file="a", head="X-Long: " + "x" * 100_000 + "\r\n")
        many = part("files", b"x", file="a", head="".join(f"X-{number}: y\r\n" for number in range(10_000)))
        for body in (one, many):
            assert (await upload(http, "/measure", body)).status_code in (400, 413)

    async def test_a_file_that_is_too_large_is_413(self, http: httpx2.AsyncClient) -> None:
        files = [("files", b"small"), ("files", b"x" * (MAX_FILE_BYTES + 1))]
        problem(await http.post("/measure", files=files), 413, "payload-too-large")

    async def test_too_many_files_are_413(self, http: httpx2.AsyncClient) -> None:
        files = [("files", b"x")] * (MAX_FILES + 1)
        problem(await http.post("/measure", files=files), 413, "payload-too-large")

    async def test_text_fields_are_limited_in_all(self, http: httpx2.AsyncClient) -> None:
        fields = [part("articles", b"x" * 1_000) for _ in range(MAX_BODY_BYTES // 1_000 + 1)]
        problem(await upload(http, "/order", *fields), 413, "payload-too-large")

    @pytest.mark.parametrize("file", [None, ""])
    async def test_parts_without_content_are_limited_too(self, http: httpx2.AsyncClient, file: str | None) -> None:
        parts = part("articles", b"", file=file) * 2_000
        problem(await upload(http, "/order", parts), 413, "payload-too-large")

    async def test_a_client_that_goes_away_leaves_no_file(self, service: Service) -> None:
        head = (
            "POST /measure HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            f"Content-Type: {MULTIPART['Content-Type']}\r\n\r\n"
        )
        with pytest.raises(EOFError):
            await raw(service.url, head.encode() + part("files", b"x" * 100_000, file="a"), half_close=True)
