"""`GET /jobs?q=`: jobs are found by the words of their inputs and tags."""

from __future__ import annotations

import secrets
from urllib.parse import quote

import httpx2
import pytest

from tests.acceptance.wire import submit


async def test_a_job_is_found_by_its_words_page_by_page(http: httpx2.AsyncClient) -> None:
    word = f"w{secrets.token_hex(6)}"
    ids = [(await submit(http, "echo", {"value": f"{word} Number {number}"}))["id"] for number in range(5)]
    found: list[str] = []
    url = f"/jobs?q={word.upper()}+number&limit=2"
    while url:
        answer = await http.get(url)
        assert answer.status_code == 200
        found += [job["id"] for job in answer.json()["jobs"]]
        url = answer.links.get("next", {}).get("url", "")
    assert sorted(found) == sorted(ids)
    assert (await http.get(f"/jobs?q={word}+absent")).json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize("q", ["", "-", "x", "one two three four five six seven eight nine"])
async def test_a_search_without_words_is_refused(http: httpx2.AsyncClient, q: str) -> None:
    answer = await http.get(f"/jobs?q={quote(q)}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")
