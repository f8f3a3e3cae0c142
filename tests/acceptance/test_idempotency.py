"""Idempotency-Key: the same request twice is one job, another request under the same key is refused."""

from __future__ import annotations

import asyncio

import httpx2

from tests.acceptance.service import Service


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
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


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
    for key in ('"' + "x" * 256 + '"', '"\t"', "é".encode()):
        answer = await post(http, "to be", key=key)
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid-parameter"
