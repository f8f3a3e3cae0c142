"""BackgroundTasks that are jobs: what an app adds at any depth reaches a worker, or the request is refused."""

from __future__ import annotations

import datetime
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from jobstream.background import BackgroundTasks, background, inline, use
from jobstream.call import BACKGROUND_THREAD, Call
from jobstream.caller import Caller, Scope
from jobstream.embedded import ChildRedis
from jobstream.errors import ConfigurationError
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource
from jobstream_api.app import create_router
from jobstream_api.service import Service
from jobstream_api.settings import ApiSettings
from jobstream_workers.background import with_background_tasks
from jobstream_workers.settings import WorkerSettings
from tests import background_app
from tests.background_app import app, covered, noted, shout
from tests.working import ended, quick_settings, working

MODULE = "tests.background_app"
SERVICE = "http://jobs.example/base"


@pytest.fixture
def source(real_source: UrlSource) -> RedisSource:
    """Not fakeredis as well: the recipes run `jobstream dev --app` on it."""
    return real_source


@pytest.fixture(autouse=True)
def _place(source: RedisSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The apps hand over to `source`, and say that the service is elsewhere."""
    monkeypatch.setenv("JOBSTREAM_BACKGROUND_URL", SERVICE)
    monkeypatch.setenv("JOBSTREAM_FILES_DIR", str(tmp_path))
    use(source)
    noted.clear()
    yield
    use(None)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app."""
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def queue(source: RedisSource) -> AsyncIterator[Queue]:
    """What was handed over."""
    client = source.client()
    yield Queue(client)
    await client.aclose()


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """A worker that takes one job after the other."""
    return quick_settings(tmp_path, max_jobs=1)


def client_of(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False), base_url="http://shop")


async def added(queue: Queue) -> list[Job]:
    """All jobs, the first one first."""
    jobs, _ = await queue.list()
    return sorted(jobs, key=lambda job: job.id)


async def run(source: RedisSource, queue: Queue, settings: WorkerSettings) -> list[Job]:
    """All jobs at their end."""
    tasks = with_background_tasks({shout.name: shout}, [MODULE])
    async with working(source, settings, tasks=tasks):
        return [await ended(queue, job) for job in await added(queue)]


def links(response: httpx2.Response) -> list[str]:
    return response.headers.get_list("link")


async def test_a_task_is_a_job_and_the_answer_says_where(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    response = await http.post("/simple/hello")
    assert response.json() == {"said": "hello"}
    (job,) = await added(queue)
    assert response.headers["operation-location"] == f"{SERVICE}/jobs/{job.id}"
    assert links(response) == [f'<{SERVICE}/jobs/{job.id}>; rel="monitor"']
    assert (job.task, job.tags) == ("background", [f"{MODULE}.note_async"])
    (job,) = await run(source, queue, settings)
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, None)
    assert noted == [("hello", (1, 2), datetime.date(2026, 11, 21))]


async def test_tasks_are_added_at_any_depth_also_from_a_thread(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    assert (await http.post("/thread/deep")).status_code == 200
    assert [job.task for job in await run(source, queue, settings)] == [BACKGROUND_THREAD] * 2
    assert noted == ["deep", "stamped deep"]


async def test_tasks_run_in_the_order_in_which_they_were_added_when_there_is_one_slot(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    response = await http.post("/dependency?q=all")
    jobs = await run(source, queue, settings)
    assert noted == ["query all", "endpoint"]
    (batch_id,) = {job.batch for job in jobs}
    assert response.headers["operation-location"] == f"{SERVICE}/batches/{batch_id}"
    assert links(response) == [f'<{SERVICE}/jobs/{job.id}>; rel="monitor"' for job in jobs]


async def test_a_dependency_with_a_longer_life_may_add_tasks_after_the_answer(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    response = await http.post("/session")
    assert len(links(response)) == 1
    await run(source, queue, settings)
    assert noted == ["endpoint", "after the answer"]


async def test_arguments_arrive_as_what_their_annotations_say(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    await http.post("/values")
    jobs = await run(source, queue, settings)
    assert [job.status for job in jobs] == [JobStatus.SUCCEEDED] * 2
    mail = background_app.Mail(to="ada@example.com", sent=datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC))
    assert noted == [(mail, b"\xff\x00", Path("inbox")), BACKGROUND_THREAD]


async def test_what_is_a_task_becomes_a_job_of_that_task(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    await http.post("/task")
    (job,) = await run(source, queue, settings)
    assert (job.task, job.result) == ("shout", "NONO")


async def test_uploads_reach_the_worker_from_where_the_app_had_read_them(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    content = bytes(range(256)) * 5000  # more than Starlette keeps in memory
    sent: list[tuple[str, tuple[str, bytes] | tuple[str, bytes, str]]] = [
        ("file", ("../a.bin", content, "application/x-a")),
        ("others", ("b", b"b")),
        ("others", ("c", b"c")),
    ]
    assert (await http.post("/files", files=sent)).status_code == 200
    jobs = await run(source, queue, settings)
    assert [job.status for job in jobs] == [JobStatus.SUCCEEDED] * 3, jobs
    assert noted == [
        ("rest", "a.bin", "application/x-a", len(content), content[3:]),
        ("all", "a.bin", "application/x-a", len(content), content),
        [("b", b"b"), ("c", b"c")],
    ]


async def test_one_that_raises_drops_no_other(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    assert (await http.post("/one-fails")).status_code == 200
    jobs = await run(source, queue, settings)
    assert [job.status for job in jobs] == [JobStatus.FAILED, JobStatus.SUCCEEDED] * 2
    assert noted == ["after a failure"] * 2


@pytest.mark.parametrize(("how", "status"), [("http", 418), ("crash", 500)])
async def test_an_endpoint_that_raises_hands_over_nothing(
    http: httpx2.AsyncClient, queue: Queue, how: str, status: int
) -> None:
    response = await http.post(f"/raises?how={how}")
    assert response.status_code == status
    assert "operation-location" not in response.headers
    assert await added(queue) == []


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("lambda", "is a lambda"),
        ("closure", "is a lambda"),
        ("partial", "is a partial"),
        ("method", "a method of one object"),
        ("builtin", "a builtin_function"),
        ("argument", "'word' is not what its annotation says: Input should be a valid string"),
        ("secret", "missing a required argument: 'label'"),
    ],
)
async def test_what_would_not_reach_a_worker_is_refused_where_it_is_added(
    http: httpx2.AsyncClient, queue: Queue, what: str, why: str
) -> None:
    assert why in (await http.post(f"/wrong/{what}")).json()
    assert await added(queue) == []


async def test_an_answer_of_the_apps_own_may_be_given_the_tasks(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    assert (await http.post("/own-response")).text == "mine"
    await run(source, queue, settings)
    assert noted == ["own response"]


async def test_a_stream_may_add_tasks_while_it_is_sent(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    assert (await http.post("/stream")).text == "a piece"
    await run(source, queue, settings)
    assert noted == ["before", "meanwhile"]


async def test_with_the_middleware_every_answer_gains_the_monitor(queue: Queue) -> None:
    async with client_of(covered) as http:
        answers = [await http.post(path) for path in ("/move", "/plain", "/inner/own-response", "/refuses")]
        failed = await http.post("/fails")
    jobs = await added(queue)
    assert [answer.headers["operation-location"].rpartition("/")[2] for answer in answers] == [job.id for job in jobs]
    assert [answer.status_code for answer in answers] == [303, 200, 200, 409]
    assert failed.status_code == 404
    assert "operation-location" not in failed.headers


@pytest.fixture
def away(redis_server: ChildRedis, tmp_path: Path) -> UrlSource:
    """A Redis that is not there."""
    return UrlSource(f"unix://{tmp_path}/nothing", timeout=0.5)


@pytest.mark.parametrize(("where", "path"), [(app, "/simple/x"), (covered, "/move"), (covered, "/plain")])
async def test_while_redis_is_away_the_request_is_answered_503(where: FastAPI, path: str, away: UrlSource) -> None:
    use(away)
    async with client_of(where) as http:
        response = await http.post(path)
    assert response.status_code == 503, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "redis-unavailable"
    assert "operation-location" not in response.headers
    assert response.headers["retry-after"]


async def test_tasks_of_one_request_are_handed_over_all_or_none(
    source: RedisSource, queue: Queue, tmp_path: Path
) -> None:
    service = Service(ApiSettings(files_dir=tmp_path, queue_depth=3, auth="open"), source)
    guest = FastAPI()
    guest.include_router(create_router(service), prefix="/jobs-here")

    @guest.post("/add/{count}")
    async def add(count: int, background_tasks: BackgroundTasks) -> None:
        for _ in range(count):
            background_tasks.add_task(background_app.note, "a")

    async with guest.router.lifespan_context(guest), client_of(guest) as http:
        first, second = await http.post("/add/2"), await http.post("/add/2")
        assert first.headers["operation-location"].startswith("http://shop/jobs-here/batches/")
        batch = (await http.get(first.headers["operation-location"])).json()
        monitor = (await http.get(links(first)[0][1:].partition(">")[0])).json()
        submitted = await http.post("/jobs-here/background", json={"function": "os:getcwd"})
        document = (await http.get("/openapi.json")).json()
    assert (second.status_code, second.json()["code"]) == (503, "queue-full")
    assert "operation-location" not in second.headers
    assert len(await added(queue)) == 2
    assert batch["progress"]["total"] == 2
    assert monitor["task"] == BACKGROUND_THREAD
    assert submitted.status_code == 404
    assert "/jobs-here/background" not in document["paths"]


async def test_all_tasks_of_a_request_are_one_call_of_redis(
    http: httpx2.AsyncClient, real_source: UrlSource, queue: Queue
) -> None:
    async def calls() -> int:
        stats = await queue.client.info("commandstats")
        return sum(int(stats[name]["calls"]) for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats)

    use(real_source)
    await http.post("/one-fails")  # from then on Redis knows the script
    client = real_source.client()
    queue = Queue(client)
    before = await calls()
    await http.post("/one-fails")
    assert await calls() == before + 1
    assert len(await added(queue)) == 8
    await client.aclose()


async def test_jobs_belong_to_the_caller_if_the_app_says_who_that_is(
    source: RedisSource, queue: Queue, tmp_path: Path
) -> None:
    async def user(connection: HTTPConnection) -> Caller | None:
        name = connection.headers.get("x-user")
        return Caller(tenant=name, scopes=frozenset({Scope.READ})) if name else None

    guest = FastAPI()
    guest.include_router(
        create_router(Service(ApiSettings(files_dir=tmp_path), source), authenticate=user), prefix="/b"
    )

    @guest.post("/add")
    async def add(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(background_app.note, "a")

    async with guest.router.lifespan_context(guest), client_of(guest) as http:
        monitor = (await http.post("/add", headers={"X-User": "acme"})).headers["operation-location"]
        answers = [await http.get(monitor, headers={"X-User": name}) for name in ("acme", "globex")]
        await http.post("/add")
    assert [answer.status_code for answer in answers] == [200, 404]
    assert [job.owner for job in await added(queue)] == ["acme", None]


async def test_no_client_can_name_a_function(source: RedisSource, tmp_path: Path, settings: WorkerSettings) -> None:
    """A worker announces the task, and says that no input fits it."""
    service = Service(ApiSettings(files_dir=tmp_path, auth="open"), source)
    guest = FastAPI()
    guest.include_router(create_router(service))
    async with (
        working(source, settings, tasks=with_background_tasks({}, [MODULE])),
        guest.router.lifespan_context(guest),
        client_of(guest) as http,
    ):
        call = Call(function=f"{MODULE}:note", arguments={"word": "a"}).model_dump()
        single = await http.post(f"/{BACKGROUND_THREAD}", json=call)
        batch = await http.post("/jobs/batch", json=[{"task": BACKGROUND_THREAD, "input": call}])
    assert (single.status_code, batch.status_code) == (422, 422), (single.text, batch.text)


@pytest.mark.parametrize(
    "function", ["os:system", "tests.clients:nothing", f"{MODULE}:datetime.datetime.now", f"{MODULE}:nothing"]
)
async def test_a_worker_calls_only_functions_of_the_modules_that_it_was_told(
    function: str, source: RedisSource, queue: Queue, settings: WorkerSettings
) -> None:
    await queue.submit(BACKGROUND_THREAD, Call(function=function, arguments={}).model_dump())
    (job,) = await run(source, queue, settings)
    assert job.error is not None
    assert job.error.code == "unknown-function"


def test_a_worker_does_not_start_with_modules_that_are_not_there() -> None:
    with pytest.raises(ConfigurationError, match="JOBSTREAM_BACKGROUND: module 'no_such_module'"):
        with_background_tasks({}, [MODULE, "no_such_module"])
    with pytest.raises(ConfigurationError, match="has a task 'background-thread'"):
        with_background_tasks({BACKGROUND_THREAD: shout}, [MODULE])
    assert with_background_tasks({"shout": shout}, []) == {"shout": shout}


async def test_an_app_that_is_told_the_modules_refuses_others_at_once(
    http: httpx2.AsyncClient, source: RedisSource, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBSTREAM_BACKGROUND", "somewhere, else_where")
    use(source)
    assert (await http.post("/simple/x")).status_code == 500
    assert await added(queue) == []


def test_outside_of_a_request_there_is_nothing_to_add_to() -> None:
    with pytest.raises(RuntimeError, match="BackgroundMiddleware"):
        background(background_app.note, "a")
    with pytest.raises(RuntimeError, match="BackgroundMiddleware"):
        BackgroundTasks().add_task(background_app.note, "a")


def test_without_a_redis_the_first_task_says_what_to_do() -> None:
    use(None)
    with TestClient(app) as client, pytest.raises(Exception, match="JOBSTREAM_REDIS_URL"):
        client.post("/simple/x")


def test_an_apps_own_tests_may_run_tasks_in_place(source: RedisSource, caplog: pytest.LogCaptureFixture) -> None:
    use(None)
    caplog.set_level(logging.WARNING)
    with inline(), TestClient(app) as client:
        client.post("/simple/hello")
        assert noted == [("hello", (1, 2), datetime.date(2026, 11, 21))]
        noted.clear()
        with pytest.raises(ValueError, match="after a failure"):
            client.post("/one-fails")
        assert noted == ["after a failure"] * 2
        noted.clear()
        client.post("/files", files=[("file", ("a", b"12345")), ("others", ("b", b"b"))])
        assert [each[-1] for each in noted] == [b"45", b"12345", ("b", b"b")]
