"""A guest: somebody's own FastAPI app, with a package named `api`, includes our router and submits from its depths."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import httpx2
import pytest

from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess, start_guarded
from tests.acceptance.service import ROOT, Service
from tests.acceptance.wire import problem
from tests.ports import free_port

PREFIX = "/background"

STORE = """
from typing import Annotated

from fastapi import Depends

from jobstream.job import Job
from jobstream_api.jobs import Jobs


class Shelf:
    # A dependency of a dependency, which hands work over from a method.
    def __init__(self, jobs: Annotated[Jobs, Depends()]) -> None:
        self.jobs = jobs

    async def count(self, text: str) -> Job:
        return await self.jobs.submit("words", {"text": text}, owner="acme")


class Desk:
    def __init__(self, shelf: Annotated[Shelf, Depends()]) -> None:
        self.shelf = shelf
"""

MAIN = """
import contextlib
from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from api.store import Desk
from jobstream.caller import Caller, Scope
from jobstream.job import Job
from jobstream_api.app import create_router
from jobstream_api.guest_document import describe_tasks
from jobstream_api.jobs import Jobs, answer_problems

ran = []


@contextlib.asynccontextmanager
async def lifespan(app):
    ran.append("guest")
    yield


async def user(connection: HTTPConnection) -> Caller | None:
    name = connection.headers.get("x-user")
    return Caller(tenant=name, scopes=frozenset({Scope.SUBMIT, Scope.READ, Scope.CANCEL})) if name else None


app = FastAPI(lifespan=lifespan)
app.include_router(create_router(authenticate=user), prefix="/background")
answer_problems(app)
describe_tasks(app)


@app.get("/jobs")
async def own_jobs(limit: int) -> dict[str, object]:
    return {"ran": ran, "limit": limit}


@app.post("/orders")
async def order(text: str, desk: Annotated[Desk, Depends()]) -> Job:
    return await desk.shelf.count(text)


@app.post("/wrong")
async def wrong(jobs: Annotated[Jobs, Depends()]) -> Job:
    return await jobs.submit("words", {"text": 1})
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, service_redis: ChildRedis) -> Iterator[str]:
    """The guest's app on a real port, with a worker of ours behind it; its URL."""
    directory = tmp_path_factory.mktemp("guest")
    (directory / "api").mkdir()
    for name, text in {"__init__": "", "store": STORE, "main": MAIN}.items():
        (directory / "api" / f"{name}.py").write_text(text)
    service = Service(directory, redis_url=service_redis.url)
    port = free_port()
    process: GuardedProcess | None = None
    try:
        service.start_worker()
        with service.log.open("ab") as log:
            process = start_guarded(
                [sys.executable, "-m", "uvicorn", "api.main:app", "--port", str(port), "--log-level", "warning"],
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(map(str, (directory, ROOT))),
                    "JOBSTREAM_REDIS_URL": service_redis.url,
                    "JOBSTREAM_FILES_DIR": str(service.files),
                },
                stdout=log,
                stderr=log,
                cwd=directory,
            )
        url = f"http://127.0.0.1:{port}"

        def knows_words() -> bool:
            try:
                return httpx2.get(f"{url}{PREFIX}/tasks/words", headers={"X-User": "acme"}).is_success
            except httpx2.TransportError:
                return False

        service.wait_until(knows_words, "the guest does not know the worker's task")
        yield url
    finally:
        if process is not None:
            process.stop(timeout=15)
        service.close()


@pytest.fixture
def http(guest: str) -> Iterator[httpx2.Client]:
    """A user of the guest's app."""
    with httpx2.Client(base_url=guest, headers={"X-User": "acme"}, timeout=30) as client:
        yield client


def test_all_resources_are_behind_the_prefix_and_link_there(http: httpx2.Client, guest: str) -> None:
    response = http.post(f"{PREFIX}/words", json={"text": "to be"})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"{PREFIX}/words/{job['id']}"
    assert response.headers["operation-location"] == f"{guest}{PREFIX}/jobs/{job['id']}"
    assert f"<{PREFIX}/jobs/{job['id']}/events>" in response.headers["link"]
    stream = http.get(job["links"]["events"]).text
    assert "event: done" in stream
    assert f'"self":"{PREFIX}/jobs/{job["id"]}"' in stream
    assert http.get(job["links"]["result"], headers={"Prefer": "wait=20"}).json()["words"] == 2
    poll = {"If-None-Match": http.get(job["links"]["self"]).headers["etag"]}
    assert http.get(job["links"]["self"], headers=poll).status_code == 304
    assert http.head(job["links"]["self"]).status_code == 200
    page = http.get(job["links"]["result"], headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert f'"{PREFIX}/static/' in page.text
    assert http.get(f"{PREFIX}/readyz").status_code == 200


def test_problems_are_answered_and_lead_to_pages_behind_the_prefix(http: httpx2.Client) -> None:
    for response, status in (
        (http.get(f"{PREFIX}/jobs/nothing"), 404),
        (http.post(f"{PREFIX}/words", json={}), 422),
        (http.put(f"{PREFIX}/jobs"), 405),
        (http.post(f"{PREFIX}/refuse", json={}, headers={"Prefer": "wait=20"}), 422),
        (http.post("/wrong"), 422),
    ):
        members = problem(response, status)
        assert members["type"].startswith(f"{PREFIX}/problems/")
        assert http.get(members["type"]).json()["title"] == members["title"]


def test_the_guests_own_routes_errors_and_lifespan_stay_its_own(http: httpx2.Client) -> None:
    assert http.get("/jobs?limit=3").json() == {"ran": ["guest"], "limit": 3}
    assert http.get("/nowhere").json() == {"detail": "Not Found"}
    assert isinstance(http.get("/jobs?limit=x").json()["detail"], list)
    document = http.get("/openapi.json").json()
    assert {"/jobs", "/orders", f"{PREFIX}/jobs", f"{PREFIX}/jobs/{{job_id}}"} <= document["paths"].keys()


def test_the_guests_document_has_the_tasks_with_their_types(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()

    def walk(node: object) -> Iterator[tuple[str, object]]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            yield str(key), value
            yield from walk(value)

    submit = document["paths"][f"{PREFIX}/words"]["post"]
    schemas = document["components"]["schemas"]
    body = submit["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "text" in schemas[body]["properties"]
    result = document["paths"][f"{PREFIX}/words/{{job_id}}"]["get"]["responses"]["200"]
    assert "words" in schemas[result["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]["properties"]
    references = {str(value) for key, value in walk(document) if key == "$ref"}
    assert references
    assert {reference.rpartition("/")[2] for reference in references} <= schemas.keys()
    ids = [value for key, value in walk(document["paths"]) if key == "operationId"]
    linked = {str(link["operationId"]) for link in submit["responses"]["202"]["links"].values()}
    assert len(linked) == 4
    assert linked <= set(map(str, ids))
    assert "/jobs" in document["paths"]  # the guest's own


def test_jobs_are_handed_over_from_any_depth(http: httpx2.Client) -> None:
    job = http.post("/orders?text=to be or not").json()
    assert job["links"]["self"] == f"{PREFIX}/jobs/{job['id']}"
    assert http.get(job["links"]["result"], headers={"Prefer": "wait=20"}).json()["words"] == 4


def test_the_guest_says_who_is_asking(http: httpx2.Client, guest: str) -> None:
    job = http.post(f"{PREFIX}/words", json={"text": "a"}).json()
    assert job["owner"] == "acme"
    problem(httpx2.get(f"{guest}{job['links']['self']}"), 401, "unauthorized")
    problem(httpx2.get(f"{guest}{job['links']['self']}", headers={"X-User": "globex"}), 404, "job-not-found")
