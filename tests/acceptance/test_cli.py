"""The command line against a real `jobstream dev`, on a Redis of its own and on fakeredis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.dev_stack import JOBSTREAM, PATIENCE, Stack, eventually, is_free

ENDLESS = ["primes", "limit:=1000000000"]
"""A job that takes seconds: long enough to be cancelled."""


@pytest.fixture(scope="module", params=["server", "fake"])
def rung(request: pytest.FixtureRequest) -> str:
    """Each kind of Redis that `jobstream dev` can bring."""
    if request.param == "server":
        request.getfixturevalue("server_program")  # skips, or fails where Redis is required
    return str(request.param)


@pytest.fixture(scope="module")
def stack(rung: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that is ready."""
    with Stack("dev", directory=tmp_path_factory.mktemp("dev"), redis=rung) as stack:
        stack.wait_for("ready ")
        yield stack


def jobstream(stack: Stack, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    env = os.environ | {"JOBSTREAM_URL": stack.url}
    return subprocess.run(
        [*JOBSTREAM, *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def submitted(stack: Stack, *arguments: str) -> str:
    """The id of a job that was handed in."""
    done = jobstream(stack, "submit", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_file_of_jobs_is_handed_in_at_once(stack: Stack, rung: str) -> None:
    lines = ['{"task": "words", "input": {"text": "a b"}}', "", '{"task": "words", "tags": ["other"]}']
    refused = jobstream(stack, "submit", "--batch", "-", "--tag", "batch", stdin="\n".join(lines))
    assert (refused.returncode, refused.stdout) == (6, "")
    assert "line 3: /input" in refused.stderr
    assert "nothing was stored" in refused.stderr
    lines[2] = '{"task": "words", "input": {"text": "c"}, "tags": ["batch", "other"]}'
    again = [
        jobstream(stack, "submit", "--batch", "-", "--tag", "batch", "--key", rung, stdin="\n".join(lines))
        for _ in "ab"
    ]
    assert [done.returncode for done in again] == [0, 0]
    ids = again[0].stdout.split()
    assert again[1].stdout.split() == ids
    assert jobstream(stack, "list", "--tag", "batch", "--ids").stdout.split() == ids[::-1]
    assert jobstream(stack, "list", "--tag", "other", "--ids").stdout.split() == ids[1:]
    assert jobstream(stack, "submit", "--batch", "-", stdin="words").returncode == 2
    assert jobstream(stack, "submit", "words", "--batch", "-").returncode == 2
    assert jobstream(stack, "submit").returncode == 2


def test_all_jobs_with_a_tag_are_cancelled_and_run_again(stack: Stack) -> None:
    ids = {submitted(stack, "words", "text=a", "--delay", "3600", "--tag", "bulk") for _ in range(2)}
    cancelled = jobstream(stack, "cancel", "--tag", "bulk")
    assert (cancelled.returncode, cancelled.stdout) == (0, "2 matched, 2 changed, 0 skipped\n")
    again = jobstream(stack, "retry", "--tag", "bulk", "--status", "cancelled", "--json")
    assert json.loads(again.stdout) == {"matched": 2, "changed": 2, "skipped": 0}
    assert set(jobstream(stack, "list", "--tag", "bulk", "--ids").stdout.split()) == ids
    for wrong in (["cancel"], ["cancel", *ids, "--all"], ["retry", "--status", "running"]):
        assert jobstream(stack, *wrong).returncode == 2


def test_files_of_a_job_are_downloaded(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("content\n")
    job_id = submitted(stack, "files", "--file", str(tmp_path / "a.txt"))
    (tmp_path / "there").mkdir()
    done = jobstream(stack, "download", job_id, "a.txt", "--to", str(tmp_path / "there"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'there' / 'a.txt'}\n", "")
    assert (tmp_path / "there" / "a.txt").read_text() == "content\n"
    for names in ([], ["b.txt"]):
        missing = jobstream(stack, "download", job_id, *names)
        assert (missing.returncode, missing.stdout) == (4, "")
        assert "a.txt" in missing.stderr


def test_a_job_is_submitted_watched_and_shown(stack: Stack) -> None:
    job_id = submitted(stack, "words", "text=to be or not to be", "--tag", "hamlet")
    watched = jobstream(stack, "watch", job_id)
    assert (watched.returncode, watched.stdout) == (0, "")
    assert watched.stderr.splitlines()[-1].startswith(f"words {job_id} succeeded")
    shown = json.loads(jobstream(stack, "show", job_id, "--json").stdout)
    assert (shown["status"], shown["result"]["words"], shown["tags"]) == ("succeeded", 6, ["hamlet"])
    assert jobstream(stack, "list", "--tag", "hamlet", "--ids").stdout.split() == [job_id]
    assert job_id in jobstream(stack, "list", "--task", "words", "--status", "succeeded").stdout


def test_waiting_prints_the_result(stack: Stack) -> None:
    done = jobstream(stack, "submit", "words", "-", "--wait", stdin='{"text": "to be or not to be", "top": 1}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["most_common"] == [{"word": "to", "count": 2}]


def test_files_are_uploaded(stack: Stack, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}\n" * 1000)
    arguments = [word for name in ("a.txt", "b.txt") for word in ("--file", str(tmp_path / name))]
    done = jobstream(stack, "submit", "files", *arguments, "--watch")
    assert done.returncode == 0, done.stderr
    assert [(report["name"], report["lines"], report["intact"]) for report in json.loads(done.stdout)] == [
        ("a.txt", 1000, True),
        ("b.txt", 1000, True),
    ]


def test_every_event_of_a_watched_job_is_a_json_line(stack: Stack) -> None:
    job_id = submitted(stack, "primes", "limit:=1000000")
    watched = jobstream(stack, "watch", job_id, "--json")
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert (watched.returncode, watched.stderr) == (0, "")
    assert (events[0]["event"], events[-1]["event"]) == ("snapshot", "done")
    assert events[-1]["data"]["result"]["count"] == 78_498
    assert {event["job"] for event in events} == {job_id}


def test_a_failed_job_is_exit_code_1(stack: Stack) -> None:
    done = jobstream(stack, "submit", "fetch", "url=http://10.0.0.1/", "--wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed" in done.stderr


def test_a_cancelled_job_is_exit_code_3(stack: Stack) -> None:
    job_id = submitted(stack, *ENDLESS)
    cancelled = jobstream(stack, "cancel", "-", stdin=f"{job_id}\n")
    assert cancelled.returncode == 0
    assert cancelled.stdout.split()[0] == job_id
    assert jobstream(stack, "watch", job_id).returncode == 3


def test_a_job_of_later_can_be_cancelled_before(stack: Stack) -> None:
    job_id = submitted(stack, "words", "text=a", "--delay", "3600")
    assert jobstream(stack, "watch", job_id, "--timeout", "0.1").returncode == 124
    assert jobstream(stack, "cancel", job_id).stdout == f"{job_id} cancelled\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "words", "txt=a"], 6, "/txt"),
        (["submit", "word", "text=a"], 4, "did you mean 'words'"),
        (["show", "unknown"], 4, "no job"),
        (["watch", "unknown"], 4, "not found"),
        (["cancel", "unknown"], 4, "no job"),
    ],
)
def test_what_is_wrong_is_said_and_has_its_exit_code(stack: Stack, arguments: list[str], code: int, said: str) -> None:
    done = jobstream(stack, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# jobstream dev itself


def test_ctrl_c_ends_dev_with_0_and_leaves_nothing(rung: str, tmp_path: Path) -> None:
    with Stack("dev", directory=tmp_path, redis=rung) as stack:
        stack.wait_for("ready ")
        submitted(stack, *ENDLESS)
        stack.signal(signal.SIGINT)
        assert stack.ends() == 0
        assert stack.left_behind() == {}
        assert is_free(stack.port)
    assert "Traceback" not in stack.text


def test_ctrl_c_while_dev_starts_leaves_nothing(rung: str, tmp_path: Path) -> None:
    with Stack("dev", directory=tmp_path, redis=rung) as stack:
        stack.wait_for("redis ")
        stack.signal(signal.SIGINT)
        assert stack.ends() == 0
        assert stack.left_behind() == {}
        assert is_free(stack.port)


def test_a_second_ctrl_c_forces(rung: str, tmp_path: Path) -> None:
    with Stack("dev", directory=tmp_path, redis=rung) as stack:
        stack.wait_for("ready ")
        submitted(stack, *ENDLESS)
        stack.signal(signal.SIGINT)
        stack.wait_for("stopping")
        stack.signal(signal.SIGINT)
        assert stack.ends() == 0
        assert eventually(lambda: stack.left_behind() == {}), stack.left_behind()


def test_a_killed_dev_leaves_nothing(rung: str, tmp_path: Path) -> None:
    with Stack("dev", directory=tmp_path, redis=rung) as stack:
        stack.wait_for("ready ")
        stack.process.kill()
        stack.ends()
        assert eventually(lambda: stack.left_behind() == {} and is_free(stack.port)), stack.left_behind()


def test_dev_says_what_its_redis_means_for_the_jobs(stack: Stack, rung: str) -> None:
    if rung == "fake":
        assert "EVERYTHING IS GONE AT EXIT" in stack.text
    else:
        assert "redis   child: " in stack.text
        assert "append-only" in stack.text
    assert "Traceback" not in stack.text


def test_dev_refuses_a_port_in_use_before_anything_starts(stack: Stack, rung: str, tmp_path: Path) -> None:
    with Stack("dev", directory=tmp_path, redis=rung, port=stack.port) as second:
        assert second.ends() == 2
    assert f"port {stack.port}" in second.text
    assert "--port" in second.text
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("server_program")
class TestOnAServerOfItsOwn:
    """What only holds where the data have a home of their own."""

    def test_jobs_survive_a_restart(self, tmp_path: Path) -> None:
        with Stack("dev", directory=tmp_path, redis="server") as first:
            first.wait_for("ready ")
            job_id = submitted(first, "words", "text=a b c", "--delay", "5")
            first.process.kill()
            first.ends()
            assert eventually(lambda: first.left_behind() == {})
        with Stack("dev", directory=tmp_path, redis="server") as again:
            again.wait_for("ready ")
            assert jobstream(again, "watch", job_id).returncode == 0

    @pytest.mark.parametrize("part", ["jobstream_cli worker", "jobstream_cli api", "redis"])
    def test_dev_ends_with_1_when_a_part_of_it_dies(self, tmp_path: Path, part: str) -> None:
        with Stack("dev", directory=tmp_path, redis="server") as stack:
            stack.wait_for("ready ")
            pid = stack.process_of("redis-server" if part == "redis" else part)
            os.kill(pid, signal.SIGKILL)
            assert stack.ends() == 1
            assert stack.left_behind() == {}
        assert f"error: {part.split()[-1]} has ended with exit code 137; everything is stopped" in stack.text

    def test_two_workers_share_the_work(self, tmp_path: Path) -> None:
        with Stack("dev", "--workers", "2", directory=tmp_path, redis="server") as stack:
            stack.wait_for("ready ")
            workers = [line for line in stack.left_behind().values() if "jobstream_cli worker" in line]
            assert len([line for line in workers if "guard.py" not in line]) == 2
