"""The page of a job: what a browser gets for the result's address. Same status as for a client, escaped, and strict."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote

import httpx2
import pytest

from tests.acceptance.wire import Puppet, done, problem, started, submit

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' &amp; </pre></job-progress> \u202e\x00"


class Page(HTMLParser):
    """What a page consists of: its elements, with attributes, and its text."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__()
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(response.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


async def get(http: httpx2.AsyncClient, url: str) -> tuple[httpx2.Response, Page]:
    response = await http.get(url, headers=HTML)
    return response, Page(response)


async def test_a_running_job_is_a_page_that_looks_again_by_itself(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("progress 1 4 counting", "log first line", 'chunk "some output"')
    puppet.do("log second line")
    await started(http, job)
    response, page = await get(http, job["links"]["result"])
    while "second line" not in page.text:  # each answer is what the record says at that moment
        response, page = await get(http, job["links"]["result"])
    assert response.status_code == 202
    assert response.headers["retry-after"] == "1"
    assert response.headers["vary"] == "Prefer, Accept"
    assert page.all("job-progress") == [{"src": job["links"]["self"], "cancel": None}]
    assert page.all("progress")[0]["value"] == "25"
    assert re.search("running, 25 %", page.text)
    assert all(text in page.text for text in ("counting", "first line", "some output"))
    assert {"http-equiv": "refresh", "content": "2"} in page.all("meta")
    puppet.do("end over")
    await done(http, job)


@pytest.mark.parametrize(
    ("task", "input", "status", "shown"),
    [
        ("echo", {"value": {"a": [1, "zwei"]}}, 200, "zwei"),
        ("echo", {"value": None}, 200, "null"),
        ("refuse", {"status": 409}, 409, "No, thank you"),
        ("crash", {}, 500, "failed"),
    ],
)
async def test_a_finished_job_is_a_page_with_its_end(
    http: httpx2.AsyncClient, task: str, input: dict[str, object], status: int, shown: str
) -> None:
    job = await submit(http, task, input)
    await done(http, job)
    response, page = await get(http, job["links"]["result"])
    assert response.status_code == status
    assert response.headers["vary"] == "Prefer, Accept"
    assert shown in page.text
    assert not [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert (await http.get(job["links"]["result"])).status_code == status


async def test_a_cancelled_and_a_purged_job_are_410_and_an_unknown_one_404(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "hang-loop")
    await started(http, job)
    await http.post(f"{job['links']['self']}/cancel")
    await done(http, job)
    response, page = await get(http, job["links"]["result"])
    assert (response.status_code, "was cancelled" in page.text) == (410, True)
    await http.delete(job["links"]["result"])
    response, page = await get(http, job["links"]["result"])
    assert (response.status_code, "was purged" in page.text) == (410, True)
    assert response.headers["vary"] == "Prefer, Accept"
    response, page = await get(http, "/echo/01JD0000000000000000000000")
    assert (response.status_code, "There is no job" in page.text) == (404, True)
    response, page = await get(http, f"/words/{job['id']}")
    assert response.status_code in (404, 410)


async def test_who_asks_for_json_gets_json_and_is_told_that_it_varies(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", {"value": 1})
    await done(http, job)
    for accept in ("application/json", "*/*", "text/html, application/json"):
        response = await http.get(job["links"]["result"], headers={"Accept": accept})
        assert (response.status_code, response.json()) == (200, 1)
        assert response.headers["vary"] == "Prefer, Accept"
    missing = await http.get("/echo/01JD0000000000000000000000")
    problem(missing, 404)
    assert missing.headers["vary"] == "Prefer, Accept"


async def test_nothing_that_a_job_says_becomes_markup(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    plain = HOSTILE.replace("\x00", "")
    puppet.do(f"log {HOSTILE}", f"progress 1 2 {plain}", f"chunk {json.dumps(HOSTILE)}", f"end {plain}")
    await done(http, job)
    response, page = await get(http, job["links"]["result"])
    assert page.all("img") == []
    assert page.all("script") == [{"type": "module", "src": "/static/job-page.js"}]
    assert page.text.count("<script>alert(1)</script>") == 4  # log, message, output and result
    assert [name for name, attributes in page.elements for key in attributes if key.startswith("on")] == []

    refused = await submit(http, "refuse", {"code": "x"})
    await done(http, refused)
    response, page = await get(http, f"/echo/{quote(HOSTILE.replace('/', ''))}")
    assert response.status_code == 404
    assert page.all("img") == []


async def test_the_page_allows_nothing_inline_and_nothing_foreign(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", {"value": 1})
    await done(http, job)
    response, page = await get(http, job["links"]["result"])
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert (policy["frame-ancestors"], policy["base-uri"]) == ("'none'", "'none'")
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert page.all("style") == []
    assert [name for name, attributes in page.elements if "style" in attributes] == []
    for attributes in page.all("script") + page.all("link"):
        url = attributes.get("src") or attributes["href"]
        assert url is not None
        answer = await http.get(url)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_static_files_are_asked_for_again_and_not_sent_again(http: httpx2.AsyncClient) -> None:
    whole = await http.get("/static/jobstream.js")
    assert whole.headers["content-type"].startswith("text/javascript")
    assert whole.headers["cache-control"] == "no-cache"
    tag = whole.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await http.get("/static/jobstream.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await http.get("/static/jobstream.js", headers={"If-None-Match": '"other"'})).status_code == 200
    assert (await http.head("/static/jobstream.js")).headers["etag"] == tag


@pytest.mark.parametrize("name", ["page.py", "__init__.py", "..%2fmain.py", "nothing.js"])
async def test_only_what_is_meant_for_browsers_is_served(http: httpx2.AsyncClient, name: str) -> None:
    response = await http.get(f"/static/{name}")
    assert (response.status_code, response.json()["code"]) == (404, "not-found")
