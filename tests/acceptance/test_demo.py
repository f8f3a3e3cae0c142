"""`jobstream demo`: a newcomer's first minute, on each kind of Redis that may be there."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from jobstream_cli.ports import get_json
from tests.acceptance.dev_stack import Stack, eventually, is_free


@pytest.fixture(params=["server", "fake"])
def rung(request: pytest.FixtureRequest) -> str:
    """Each kind of Redis that `jobstream demo` can bring."""
    if request.param == "server":
        request.getfixturevalue("server_program")  # skips, or fails where Redis is required
    return str(request.param)


def test_the_demo_runs_all_four_tasks_and_cleans_up(rung: str, tmp_path: Path) -> None:
    with Stack("demo", directory=tmp_path, redis=rung) as demo:
        assert demo.ends() == 0, demo.text
        assert demo.left_behind() == {}
        assert is_free(demo.port)
    for result in (
        "words   3,041,920 words, 102 different ones",
        "files   3 files, 67.4 MB, all as they were sent",
        "primes  50,847,534 primes up to 1,000,000,000",
        "fetch   status 200, 2.6 MB",
    ):
        assert result in demo.text
    assert demo.text.count("succeeded in") == 4
    assert "\x1b" not in demo.text
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing(rung: str, tmp_path: Path) -> None:
    with Stack("demo", directory=tmp_path, redis=rung) as demo:
        demo.wait_for("primes", "running")
        demo.signal(signal.SIGINT)
        assert demo.ends() == 130
        assert demo.left_behind() == {}
        assert is_free(demo.port)
    assert "Traceback" not in demo.text


def test_a_killed_demo_leaves_nothing(rung: str, tmp_path: Path) -> None:
    with Stack("demo", directory=tmp_path, redis=rung) as demo:
        demo.wait_for("Four jobs")
        demo.process.kill()
        demo.ends()
        assert eventually(lambda: demo.left_behind() == {} and is_free(demo.port)), demo.left_behind()


def test_a_kept_demo_stays_until_ctrl_c(rung: str, tmp_path: Path) -> None:
    with Stack("demo", "--keep", directory=tmp_path, redis=rung) as demo:
        demo.wait_for("It keeps running")
        jobs = get_json("127.0.0.1", demo.port, "/jobs")
        assert isinstance(jobs, dict)
        assert isinstance(jobs["jobs"], list)
        assert len(jobs["jobs"]) == 4
        demo.signal(signal.SIGINT)
        assert demo.ends() == 0
        assert demo.left_behind() == {}
        assert is_free(demo.port)


def test_the_demo_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Stack("demo", directory=tmp_path, redis="fake", port=port) as demo:
            assert demo.ends() == 2
    assert f"port {port}" in demo.text
