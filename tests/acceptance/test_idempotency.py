"""Idempotency-Key: the same request twice is one job, another request under the same key is refused."""

from __future__ import annotations

import asyncio
import contextlib

import httpx2
import pytest
from arq.connections import ArqRedis

from jobstream.errors import IdempotencyInFlight
from jobstream.idempotency import reserved
from jobstream.queue import Queue
from tests.acceptance.service import Service
from tests.acceptance.wire import done, problem


async def post(http: httpx2.AsyncClient, text: str, *, key: str | bytes, path: str = "/words") -> httpx2.Response:
    return await http.post(
        path, json={"text": text}, headers=[(b"Idempotency-Key", key if isinstance(key, bytes) else key.encode())]
    )


async def test_the_same_request_twice_is_one_job(http: httpx2.AsyncClient, service: Service) -> None:
    first = await post(http, "to be", key='"once"')
    again = await post(http, "to be", key="once")  # a bare token is the same key
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]


async def test_a_hundred_at_once_are_one_job(http: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(*(post(http, "to be", key='"crowd"') for _ in range(100)))
    in_flight = [answer for answer in answers if answer.status_code == 409]
    for answer in in_flight:
        problem(answer, 409, "idempotency-in-flight")
        assert answer.headers["retry-after"] == "1"
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(in_flight) + len(accepted) == 100
    assert len({answer.json()["id"] for answer in accepted}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in accepted) == 1


async def test_another_payload_under_the_key_is_refused(http: httpx2.AsyncClient) -> None:
    await post(http, "to be", key='"taken"')
    for other in (
        await post(http, "not to be", key='"taken"'),
        await post(http, "to be", key='"taken"', path="/words?ttl=5"),
    ):
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency-mismatch"


async def test_the_key_belongs_to_its_task(http: httpx2.AsyncClient) -> None:
    one = await post(http, "to be", key='"shared"')
    other = await http.post("/primes", json={"limit": 10}, headers={"Idempotency-Key": '"shared"'})
    assert other.status_code == 202
    assert other.json()["id"] != one.json()["id"]


async def test_uploads_count_by_name_and_content_and_are_not_kept_twice(
    http: httpx2.AsyncClient, service: Service
) -> None:
    headers = {"Idempotency-Key": '"files"'}
    before = service.stored_files()
    first = await http.post("/words", files={"files": ("a.txt", b"to be")}, headers=headers)
    kept = service.stored_files()
    again = await http.post("/words", files={"files": ("a.txt", b"to be")}, headers=headers)
    other = await http.post("/words", files={"files": ("a.txt", b"or not")}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert other.json()["code"] == "idempotency-mismatch"
    assert service.stored_files() == kept
    assert kept != before


async def test_a_key_that_is_none_is_refused(http: httpx2.AsyncClient) -> None:
    for key in ("", '""', '"' + "x" * 256 + '"', '"\t"', "é".encode()):
        answer = await post(http, "to be", key=key)
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid-parameter"


async def test_the_first_answer_comes_again_whatever_has_become_of_the_job(http: httpx2.AsyncClient) -> None:
    for path in ("/words", "/words?ttl=0.1"):
        key = f'"first {path}"'
        first = await post(http, "to be", key=key, path=path)
        await done(http, first.json())
        again = await post(http, "to be", key=key, path=path)
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        kept = ("location", "operation-location", "link", "retry-after", "etag", "vary")
        assert [again.headers[name] for name in kept] == [first.headers[name] for name in kept]
        assert again.headers["idempotent-replayed"] == "true"
    await http.delete(first.json()["links"]["self"])
    after = await post(http, "to be", key=key, path=path)
    assert after.json() == first.json()
    assert (await http.get(first.json()["links"]["self"])).status_code in (404, 410)


async def test_a_request_that_waits_gets_the_result_again(http: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": '"patient"', "Prefer": "wait=20"}
    first, again = [await http.post("/words", json={"text": "to be"}, headers=headers) for _ in range(2)]
    assert (first.status_code, again.status_code, again.content) == (200, 200, first.content)
    assert again.headers["content-location"] == first.headers["content-location"]
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("body", "status"), [(b'{"text": 1}', 422), (b'{"text": "a"}', 202)])
async def test_while_the_first_body_arrives_the_key_is_in_use_and_a_refused_request_lets_go(
    http: httpx2.AsyncClient, service: Service, body: bytes, status: int
) -> None:
    key = f'"slow {status}"'
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        f"POST /words HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Idempotency-Key: {key}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    )
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")  # it waits for the body now
        problem(await post(http, "a", key=key), 409, "idempotency-in-flight")
        problem(await http.post("/words", files={"files": ("a.txt", b"x")}, headers={"Idempotency-Key": key}), 409)
        writer.write(body)
        assert (await reader.readuntil(b"\r\n")).startswith(f"HTTP/1.1 {status} ".encode())
    writer.close()
    again = await post(http, "a", key=key)
    assert again.status_code == 202
    assert ("idempotent-replayed" in again.headers) == (status == 202)


async def test_a_process_that_dies_within_a_request_lets_go_of_its_key(real_client: ArqRedis) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        async with reserved(real_client, "words:k", "first", lease=0.2):
            await asyncio.sleep(0.4)  # longer than the lease, which is renewed
            with pytest.raises(IdempotencyInFlight):
                async with reserved(real_client, "words:k", "second"):
                    pass
            raise asyncio.CancelledError  # nothing is let go by hand
    while True:
        with contextlib.suppress(IdempotencyInFlight):
            async with reserved(real_client, "words:k", "third"):
                job, replayed = await Queue(real_client).submit_once(
                    "words", {}, job_id="third", key="words:k", fingerprint="f"
                )
                break
        await asyncio.sleep(0.02)
    assert (job.id, replayed) == ("third", False)


async def test_nobody_else_submits_under_a_key_that_is_held(real_client: ArqRedis) -> None:
    async with reserved(real_client, "words:k", "first"):
        with pytest.raises(IdempotencyInFlight):
            await Queue(real_client).submit_once("words", {}, job_id="second", key="words:k", fingerprint="f")
    assert not await real_client.exists("jobstream:job:second")
