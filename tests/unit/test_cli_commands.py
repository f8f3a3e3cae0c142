"""The commands against a scripted service: data on stdout, progress on stderr, exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import JsonValue

from jobstream_cli.main import cli
from tests.unit.stub_service import Answer, StubService, answer, error, frame, job, sse

PROGRESS: JsonValue = {"current": 1, "total": 2, "percent": 50.0, "message": "half", "eta_s": 3.0, "items": ["a"]}


@pytest.fixture
def service() -> Iterator[StubService]:
    with StubService() as service:
        yield service


def invoke(service: StubService, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["--url", service.url, *arguments], input=stdin, catch_exceptions=False)


def scripted(service: StubService, job_id: str, status: str, **fields: JsonValue) -> None:
    """A job that runs and comes to this end."""
    last = job(job_id, status, **fields)
    service.on(
        "GET",
        f"/jobs/{job_id}/events",
        sse(
            "retry: 1\n\n",
            frame("snapshot", job(job_id, "queued"), "e-1"),
            frame("status", {"status": "running", "attempt": 1, "worker": "w"}, "e-2"),
            frame("progress", PROGRESS),
            frame("log", {"level": "warning", "message": "slow read"}, "e-3"),
            frame("done", last, "e-4"),
        ),
    )
    service.on("GET", f"/jobs/{job_id}", answer(200, last))


FAILED: JsonValue = error("no such file")


# submit


def test_submit_prints_the_id_and_nothing_else(service: StubService) -> None:
    service.on("POST", "/words", answer(202, job("j7", "queued")))
    result = invoke(service, "submit", "words", "text=to be", "limit:=3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "j7\n", "")
    (request,) = service.requests
    assert json.loads(request.body) == {"text": "to be", "limit": 3}


def test_submit_as_json_prints_the_job(service: StubService) -> None:
    service.on("POST", "/words", answer(202, job("j7", "queued")))
    service.on("GET", "/jobs/j7", answer(200, job("j7", "queued")))
    assert json.loads(invoke(service, "submit", "words", "--json").stdout)["id"] == "j7"


@pytest.mark.parametrize("how", ["--watch", "--wait"])
def test_a_watched_submit_prints_the_result(service: StubService, how: str) -> None:
    service.on("POST", "/words", answer(202, job("j7", "queued")))
    service.on("GET", "/words/j7", answer(200, {"total": 6}))
    scripted(service, "j7", "succeeded")
    result = invoke(service, "submit", "words", how)
    assert (result.exit_code, result.stdout) == (0, '{"total": 6}\n')
    assert ("words j7 running" in result.stderr) is (how == "--watch")


def test_a_watched_submit_as_json_prints_the_job_as_it_ended(service: StubService) -> None:
    service.on("POST", "/words", answer(202, job("j7", "queued")))
    scripted(service, "j7", "failed", error=FAILED)
    result = invoke(service, "submit", "words", "--wait", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"


def test_a_submit_uploads_files_and_passes_options_on(service: StubService, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("content")
    service.on("POST", "/files", answer(202, job("j7", "queued")))
    options = ["--queue", "big", "--tag", "a", "--tag", "b", "--delay", "5", "--key", "k1"]
    assert invoke(service, "submit", "files", "--file", str(tmp_path / "a.txt"), *options).exit_code == 0
    (request,) = service.requests
    assert request.query == {"queue": ["big"], "tags": ["a", "b"], "delay": ["5.0"]}
    assert request.headers["idempotency-key"] == '"k1"'
    assert b'filename="a.txt"' in request.body


@pytest.mark.parametrize(("status", "code"), [(422, 6), (409, 6), (429, 6), (404, 4), (401, 5), (403, 5), (503, 7)])
def test_a_refused_submit_says_why_and_exits_by_the_kind_of_refusal(
    service: StubService, status: int, code: int
) -> None:
    errors: JsonValue = [{"pointer": "/text", "detail": "field required"}]
    service.on("POST", "/words", answer(status, {"detail": "not that way", "status": status, "errors": errors}))
    result = invoke(service, "submit", "words")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: not that way (/text: field required)\n"


def test_a_service_that_is_not_there_is_exit_code_7() -> None:
    with StubService() as gone:
        pass
    result = invoke(gone, "submit", "words")
    assert result.exit_code == 7
    assert f"error: no answer from {gone.url}" in result.stderr


# watch


@pytest.mark.parametrize(
    ("status", "code"),
    [("succeeded", 0), ("failed", 1), ("cancelled", 3)],
)
def test_the_outcome_is_the_exit_code_of_watch(service: StubService, status: str, code: int) -> None:
    scripted(service, "j1", status, error=FAILED if status == "failed" else None)
    result = invoke(service, "watch", "j1")
    assert (result.exit_code, result.stdout) == (code, "")


def test_watch_without_a_terminal_says_one_line_for_each_change_of_state(service: StubService) -> None:
    scripted(service, "j1", "failed", error=FAILED)
    assert invoke(service, "watch", "j1").stderr.splitlines() == [
        "words j1 queued",
        "words j1 running",
        "words j1 failed: no such file",
    ]


def test_watch_shows_the_jobs_log_when_asked(service: StubService) -> None:
    scripted(service, "j1", "succeeded")
    assert "words| warning: slow read" in invoke(service, "watch", "j1", "--logs").stderr.splitlines()


def test_the_worst_of_several_jobs_is_the_exit_code(service: StubService) -> None:
    scripted(service, "j1", "succeeded")
    scripted(service, "j2", "failed", error=FAILED)
    scripted(service, "j3", "cancelled")
    assert invoke(service, "watch", "j1", "j2", "j3").exit_code == 1
    assert invoke(service, "watch", "j1", "j2", "unknown").exit_code == 4


def test_watch_as_json_is_one_event_a_line(service: StubService) -> None:
    scripted(service, "j1", "succeeded")
    result = invoke(service, "watch", "j1", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["snapshot", "status", "progress", "log", "done"]
    assert {line["job"] for line in lines} == {"j1"}
    assert lines[3] == {"job": "j1", "id": "e-3", "event": "log", "data": {"level": "warning", "message": "slow read"}}
    assert result.stderr == ""


def test_watching_a_job_that_was_done_long_ago_tells_its_end(service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", answer(204))
    service.on("GET", "/jobs/j1", answer(200, job("j1", "failed", error=FAILED)))
    result = invoke(service, "watch", "j1")
    assert (result.exit_code, result.stderr) == (1, "words j1 failed: no such file\n")
    line = json.loads(invoke(service, "watch", "j1", "--json").stdout)
    assert (line["event"], line["data"]["status"]) == ("done", "failed")


def test_watch_reads_ids_from_stdin(service: StubService) -> None:
    scripted(service, "j1", "succeeded")
    scripted(service, "j2", "cancelled")
    assert invoke(service, "watch", "-", stdin="j1\nj2 words\n\nj1\n").exit_code == 3
    assert len(service.seen("GET", "/jobs/j1/events")) == 1


def test_a_watch_whose_time_is_over_exits_124_and_says_how_to_return(service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), hold=True))
    result = invoke(service, "watch", "j1", "--timeout", "0.2")
    assert result.exit_code == 124
    assert f"jobstream --url {service.url} watch j1" in result.stderr


def test_ctrl_c_detaches_from_the_jobs_and_says_how_to_return(service: StubService) -> None:
    scripted(service, "j0", "succeeded")
    held: Answer = sse(frame("snapshot", job("j1"), "e-1"), hold=True)
    service.on("GET", "/jobs/j1/events", held)
    watching = subprocess.Popen(
        [sys.executable, "-m", "jobstream_cli", "--url", service.url, "watch", "j0", "j1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None
    seen: list[str] = []
    while len(seen) < 4:  # j0's three states and j1's one
        seen.append(watching.stderr.readline())
        assert seen[-1], seen
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=10)
    assert watching.returncode == 130
    assert said.rstrip().endswith(f"jobstream --url {service.url} watch j1")
    assert "Traceback" not in said
    assert not service.seen("POST", "/jobs/j1/cancel")


def test_on_a_terminal_watch_draws_bars_and_a_failure_in_full(service: StubService) -> None:
    reason = "a very long reason that no bar has room for, because it goes on and on until the very end"
    scripted(service, "j1", "failed", error=error(reason))
    terminal, theirs = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "jobstream_cli", "--url", service.url, "watch", "j1"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    out, _ = watching.communicate(timeout=10)
    said = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert (watching.returncode, out) == (1, b"")
    *bars, last = said.splitlines()
    assert "\x1b[31m✕\x1b[0m words" in bars[-1]
    assert "━" in bars[-1]
    assert last == f"words j1 failed: {reason}"


def test_a_reader_that_leaves_the_pipe_gets_no_traceback(service: StubService) -> None:
    scripted(service, "j1", "succeeded")
    watching = subprocess.Popen(
        [sys.executable, "-m", "jobstream_cli", "--url", service.url, "watch", "--json", "j1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout is not None
    watching.stdout.close()
    _, said = watching.communicate(timeout=10)
    assert (watching.returncode, said) == (1, b"")


# list, show, cancel


def test_list_is_a_table_for_people(service: StubService) -> None:
    jobs: list[JsonValue] = [job("j1", progress=PROGRESS), job("j2", "failed", error=FAILED, task="primes")]
    service.on("GET", "/jobs", answer(200, {"jobs": jobs, "next_cursor": None}))
    header, first, second = invoke(service, "list").stdout.splitlines()
    assert header.split() == ["ID", "TASK", "STATUS", "AGE", "MESSAGE"]
    assert first.split()[:3] == ["j1", "words", "running"]
    assert first.endswith("half")
    assert second.endswith("no such file")


def test_list_is_ndjson_or_ids_for_programs(service: StubService) -> None:
    page = answer(200, {"jobs": [job("j1"), job("j2")], "next_cursor": None})
    service.on("GET", "/jobs", page)
    assert invoke(service, "list", "--ids").stdout == "j1\nj2\n"
    lines = invoke(service, "list", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["j1", "j2"]


def test_list_passes_its_filter_on(service: StubService) -> None:
    service.on("GET", "/jobs", answer(200, {"jobs": [], "next_cursor": None}))
    result = invoke(service, "list", "--status", "failed", "--task", "words", "--tag", "a", "--limit", "5")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no jobs\n")
    assert service.requests[0].query == {"status": ["failed"], "task": ["words"], "tag": ["a"], "limit": ["5"]}


def test_show_prints_a_failed_job_and_exits_0(service: StubService) -> None:
    service.on("GET", "/jobs/j1", answer(200, job("j1", "failed", error=FAILED, progress=PROGRESS)))
    result = invoke(service, "show", "j1")
    assert result.exit_code == 0
    assert "status    failed" in result.stdout
    assert "progress  50%  1/2" in result.stdout
    assert "no such file" in result.stdout
    assert json.loads(invoke(service, "show", "j1", "--json").stdout)["error"] == FAILED


def test_show_of_an_unknown_job_is_exit_code_4(service: StubService) -> None:
    result = invoke(service, "show", "j1")
    assert (result.exit_code, result.stdout) == (4, "")


def test_cancel_prints_what_became_of_each_job(service: StubService) -> None:
    service.on("POST", "/jobs/j1/cancel", answer(202, job("j1", "cancelling")))
    service.on("POST", "/jobs/j2/cancel", answer(200, job("j2", "succeeded")))
    result = invoke(service, "cancel", "j1", "j2", "j3")
    assert (result.exit_code, result.stdout) == (4, "j1 cancelling\nj2 succeeded\n")
    assert result.stderr.startswith("j3: ")
    assert json.loads(invoke(service, "cancel", "j1", "--json").stdout)["status"] == "cancelling"


def test_retry_runs_jobs_again_and_says_which_cannot_be(service: StubService) -> None:
    service.on("POST", "/jobs/j1/retry", answer(202, job("j1", "queued")))
    result = invoke(service, "retry", "j1", "j3")
    assert (result.exit_code, result.stdout) == (4, "j1 queued\n")
    assert result.stderr.startswith("j3: ")
    assert json.loads(invoke(service, "retry", "j1", "--json").stdout)["status"] == "queued"


# what tasks say


def test_what_a_task_says_cannot_steer_the_terminal(service: StubService) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07gone\r\nsecond line"
    progress: JsonValue = {"current": 1, "message": evil}
    service.on("GET", "/jobs", answer(200, {"jobs": [job(progress=progress)], "next_cursor": None}))
    service.on("GET", "/jobs/j1", answer(200, job(progress=progress)))
    scripted(service, "j2", "failed", error=error(evil))
    for output in (
        invoke(service, "list").stdout,
        invoke(service, "show", "j1").stdout,
        invoke(service, "watch", "j2").stderr,
    ):
        assert "gone" in output
        assert not {"\x1b", "\x07", "\r"} & set(output)
