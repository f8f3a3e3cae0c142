"""The list: newest first, filtered, page by page."""

from __future__ import annotations

import asyncio
import re
import secrets

import httpx2
import pytest

from tests.acceptance.wire import Json, done, problem, submit


async def _pages(http: httpx2.AsyncClient, query: str) -> list[list[str]]:
    """The ids of all pages, by following `Link: rel="next"`."""
    url: str | None = f"/jobs?{query}"
    pages: list[list[str]] = []
    while url is not None:
        response = await http.get(url)
        assert response.status_code == 200, response.text
        page = response.json()
        pages.append([job["id"] for job in page["jobs"]])
        link = re.fullmatch(r'<(.+)>; rel="next"', response.headers.get("link", ""))
        assert (link is None) == (page["next_cursor"] is None)
        url = link[1] if link else None
    return pages


async def _parked(http: httpx2.AsyncClient, tag: str, task: str = "echo") -> str:
    return str((await submit(http, task, {}, tags=tag, delay="600"))["id"])


async def _forget(http: httpx2.AsyncClient, ids: list[str]) -> None:
    await asyncio.gather(*(http.delete(f"/jobs/{job_id}") for job_id in ids))


@pytest.fixture
def tag() -> str:
    """A tag that no other test's jobs have."""
    return f"list-{secrets.token_hex(6)}"


async def test_jobs_are_listed_newest_first_over_several_pages(http: httpx2.AsyncClient, tag: str) -> None:
    ids = [await _parked(http, tag) for _ in range(5)]
    pages = await _pages(http, f"tag={tag}&limit=2")
    assert [len(page) for page in pages] == [2, 2, 1]
    listed = [job_id for page in pages for job_id in page]
    assert set(listed) == set(ids)
    created = {job_id: (await http.get(f"/jobs/{job_id}")).json()["created_at"] for job_id in ids}
    # Jobs of the same millisecond stand in the order of their ids, which begin with the API's own milliseconds.
    assert [created[job_id] for job_id in listed] == sorted(created.values(), reverse=True)
    await _forget(http, ids)


async def test_a_page_that_ends_with_the_list_names_no_next_one(http: httpx2.AsyncClient, tag: str) -> None:
    ids = [await _parked(http, tag) for _ in range(2)]
    assert [len(page) for page in await _pages(http, f"tag={tag}&limit=2")] == [2]
    assert await _pages(http, f"tag={tag}-not") == [[]]
    await _forget(http, ids)


async def test_jobs_of_one_moment_are_each_listed_once(http: httpx2.AsyncClient, tag: str) -> None:
    ids = await asyncio.gather(*(_parked(http, tag) for _ in range(40)))
    listed = [job_id for page in await _pages(http, f"tag={tag}&limit=3") for job_id in page]
    assert sorted(listed) == sorted(ids)
    await _forget(http, list(ids))


async def test_a_cursor_stays_good_when_jobs_come_and_go(http: httpx2.AsyncClient, tag: str) -> None:
    ids = [await _parked(http, tag) for _ in range(4)]
    first = (await http.get(f"/jobs?tag={tag}&limit=2")).json()
    seen = [job["id"] for job in first["jobs"]]
    newer = await _parked(http, tag)
    await _forget(http, seen[1:])
    rest = (await http.get("/jobs", params={"tag": tag, "limit": "10", "cursor": first["next_cursor"]})).json()
    assert sorted([*seen, *(job["id"] for job in rest["jobs"])]) == sorted(ids)
    await _forget(http, [*ids, newer])


async def test_filters_by_status_task_and_tag_are_combined(http: httpx2.AsyncClient, tag: str) -> None:
    parked = await _parked(http, tag)
    other = await _parked(http, tag, task="see_other")
    ended = (await done(http, await submit(http, "echo", {}, tags=f"{tag},more")))["id"]
    failed = (await done(http, await submit(http, "refuse", {}, tags=tag)))["id"]

    async def found(query: str) -> set[str]:
        return {job_id for page in await _pages(http, query) for job_id in page}

    assert await found(f"tag={tag}") == {parked, other, ended, failed}
    assert await found(f"tag={tag}&status=scheduled") == {parked, other}
    assert await found(f"tag={tag}&status=scheduled&task=echo") == {parked}
    assert await found(f"tag={tag}&task=echo") == {parked, ended}
    assert await found(f"tag={tag}&status=failed") == {failed}
    assert await found(f"tag={tag}&status=running") == set()
    assert ended in await found("status=succeeded&limit=1000")
    assert ended in await found("task=echo&limit=1000")
    assert await found("task=no-such-task") == set()
    await _forget(http, [parked, other, ended, failed])
    assert await found(f"tag={tag}") == set()


async def test_the_list_shows_whole_jobs(http: httpx2.AsyncClient, tag: str) -> None:
    job: Json = await done(http, await submit(http, "echo", {"value": {"a": 1}}, tags=tag))
    assert (await http.get(f"/jobs?tag={tag}")).json() == {"jobs": [job], "next_cursor": None}


async def test_a_limit_above_1000_is_taken_as_1000(http: httpx2.AsyncClient) -> None:
    for limit in ("1001", "1000000", "9" * 400):
        assert (await http.get(f"/jobs?limit={limit}")).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "cursor=nonsense",
        "cursor=%00",
        "cursor=MTIz",  # no id
        "cursor=Ong",  # no time
        "cursor=é",
        "limit=0",
        "limit=-1",
        "limit=many",
        "status=odd",
    ],
)
async def test_a_query_that_makes_no_sense_is_422(http: httpx2.AsyncClient, query: str) -> None:
    members = problem(await http.get(f"/jobs?{query}"), 422, "invalid-parameter")
    name = query.partition("=")[0]
    assert name in members["detail"].lower()
