"""What a service says in its log: every line in one format, with what it is about, and no secret in any of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import httpx2
import pytest

from jobstream.client import SyncClient
from jobstream.embedded import ChildRedis, ServerProgram
from jobstream.redis import UrlSource
from tests.acceptance.service import TASKS, Service

CANARY = "canary" + secrets.token_hex(8)
PATIENCE = 30.0

pytestmark = pytest.mark.timeout(120)


class Said(NamedTuple):
    """The service, the ids of its jobs by task, and all that it has said."""

    service: Service
    jobs: dict[str, str]
    text: str
    lines: list[dict[str, Any]]

    def line(self, message: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines if line["message"] == message]
        return found


@pytest.fixture(scope="module")
def said(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """A service on a Redis with a password, its keys and secrets canaries; it runs jobs, and is asked wrong things."""
    with ChildRedis(server_program, tmp_path_factory.mktemp("redis")) as redis:
        with UrlSource(redis.url).sync_client() as client:
            client.config_set("requirepass", CANARY)
        service = Service(
            tmp_path_factory.mktemp("service"),
            redis_url=redis.url.replace("unix://", f"unix://:{CANARY}@"),
            JOBSTREAM_LOG_FORMAT="json",
            JOBSTREAM_LOG_LEVEL="debug",
            JOBSTREAM_TASKS=f"{TASKS},tests.acceptance.logging_tasks",
            JOBSTREAM_WEBHOOK_SECRET="whsec_" + "Y2FuYXJ5" * 4,
            JOBSTREAM_TICKET_SECRET=CANARY * 3,
        )
        service.start_api()
        service.start_worker(f"{TASKS},tests.acceptance.logging_tasks")
        try:
            service.wait_until(lambda: service.knows("says_in_loop"), "the tasks are not known")
            jobs = _use(service)
        finally:
            service.close()
            with UrlSource(service.redis_url or "").sync_client() as client:
                client.config_set("requirepass", "")
        text = service.log.read_text()
        yield Said(service, jobs, text, [json.loads(line) for line in text.splitlines()])


def _use(service: Service) -> dict[str, str]:
    jobs = {}
    with SyncClient(service.url, token=CANARY) as client:
        for task in ("says_in_loop", "says_in_thread", "says_in_process", "fails"):
            job = client.submit(task, {"secret": CANARY})
            jobs[task] = job.id
            job.wait(PATIENCE)
    with httpx2.Client(base_url=service.url, headers={"X-Api-Key": CANARY, "Cookie": CANARY}) as http:
        http.post("/says_in_loop", json={"secret": 1, "unknown": CANARY})
        http.post("/says_in_loop", content=b'{"secret": "' + CANARY.encode())
        http.get(f"/jobs/{jobs['fails']}/events?ticket={CANARY}")
        http.get(f"/jobs?q={CANARY}", headers={"X-Request-Id": "a-request"})
        http.post("/says_in_loop?callback_url=http://user:" + CANARY + "@127.0.0.1:1/", json={"secret": CANARY})
    return jobs


def test_every_line_is_json_and_says_when_who_and_how_bad(said: Said) -> None:
    assert len(said.lines) > 10
    for line in said.lines:
        assert {"timestamp", "level", "logger", "message"} <= line.keys(), line
    loggers = {line["logger"] for line in said.lines}
    assert loggers >= {"uvicorn.error", "jobstream.worker", "jobstream.runner", "jobstream.access", "shop.orders"}


@pytest.mark.parametrize(
    ("message", "task"),
    [
        ("in the loop", "says_in_loop"),
        ("by structlog", "says_in_loop"),
        ("in a thread of its own", "says_in_loop"),
        ("in a thread", "says_in_thread"),
        ("in a process", "says_in_process"),
        ("in a thread of a process", "says_in_process"),
        ("by structlog in a process", "says_in_process"),
        ("too quiet", "says_in_process"),
    ],
)
def test_a_line_that_is_said_during_a_job_names_it(said: Said, message: str, task: str) -> None:
    line = said.line(message)
    assert (line["job_id"], line["task"], line["attempt"]) == (said.jobs[task], task, 1)
    assert line["logger"] == "shop.orders"


def test_what_is_said_by_structlog_keeps_its_fields(said: Said) -> None:
    assert said.line("by structlog")["order"] == 7


def test_the_end_of_a_job_names_it_too(said: Said) -> None:
    (line,) = [line for line in said.lines if "failed after" in line["message"]]
    assert (line["job_id"], line["task"], line["level"]) == (said.jobs["fails"], "fails", "info")
    assert "LookupError: no such order" in line["message"], "with its traceback"


def test_a_line_of_a_request_carries_its_id(said: Said) -> None:
    assert [line for line in said.lines if line.get("request_id") == "a-request"]


def test_lines_that_are_of_no_job_name_none(said: Said) -> None:
    assert not [line for line in said.lines if line["logger"] == "uvicorn.error" and "job_id" in line]


def test_no_secret_and_no_input_is_in_the_log(said: Said) -> None:
    assert CANARY not in said.text
    assert "Y2FuYXJ5" not in said.text


def test_plain_lines_look_as_structlogs_do(said: Said) -> None:
    plain, structlogs = said.line("in the loop"), said.line("by structlog")
    assert plain.keys() == structlogs.keys() - {"order"}
    for line in (plain, structlogs):
        assert line["timestamp"].endswith("Z")
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
