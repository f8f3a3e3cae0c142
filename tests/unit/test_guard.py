"""The guard: no command outlives its starter, and none is stopped by somebody else's Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from jobstream import guard
from jobstream.guard import GuardedProcess, start_guarded

pytestmark = pytest.mark.timeout(20)

WAITS = "echo ready; sleep 1000 & wait"
SAYS_GOODBYE = "trap 'echo goodbye; exit 3' TERM; " + WAITS
DEAF = "trap '' TERM; " + WAITS

STARTER = """
import os, signal, sys
from jobstream.guard import start_guarded
def say(line):
    os.write(1, f"{line}\\n".encode())  # in one piece, between the lines of the command
process = start_guarded(["/bin/sh", "-c", sys.argv[1]])
signal.signal(signal.SIGINT, lambda *_: say(f"interrupted {process.poll()}"))
say("started")
sys.stdin.read()
process.stop()
"""


@contextmanager
def shell(script: str, *arguments: str, grace: float = 10.0, pass_fds: Sequence[int] = ()) -> Iterator[GuardedProcess]:
    process = start_guarded(
        ["/bin/sh", "-c", script, *arguments], grace=grace, stdout=subprocess.PIPE, pass_fds=pass_fds
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        output(process).close()


@contextmanager
def starter(script: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def output(process: GuardedProcess | subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def test_the_exit_code_is_the_commands() -> None:
    with shell("exit 7") as process:
        assert process.wait(10) == 7
        assert process.poll() == 7
        assert process.stop() == 7


def test_a_command_ended_by_a_signal_exits_as_in_a_shell() -> None:
    with shell("kill -KILL $$") as process:
        assert process.wait(10) == 128 + signal.SIGKILL


def test_a_command_that_cannot_be_started_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"/no/such/command cannot be started: No such file or directory"):
        start_guarded(["/no/such/command"], stderr=subprocess.DEVNULL)


def test_a_stopped_command_is_asked_before_it_is_killed() -> None:
    with shell(SAYS_GOODBYE) as process:
        assert output(process).readline() == b"ready\n"
        assert process.poll() is None
        assert process.stop() == 3
        assert output(process).read() == b"goodbye\n"


def test_a_command_deaf_to_sigterm_is_killed_after_the_grace() -> None:
    with shell(DEAF, grace=0.1) as process:
        assert output(process).readline() == b"ready\n"
        assert process.stop() == 128 + signal.SIGKILL


def test_a_stop_with_a_timeout_does_not_wait_for_the_grace() -> None:
    with shell(DEAF, grace=1000) as process:
        assert output(process).readline() == b"ready\n"
        assert process.stop(timeout=0.1) == 128 + signal.SIGKILL


def test_processes_that_a_command_leaves_behind_are_ended() -> None:
    with shell("sleep 1000 & exit 0") as process:
        assert output(process).read() == b""  # the end of the file: nobody holds the pipe any more
        assert process.wait(10) == 0


def test_the_pid_is_the_commands() -> None:
    with shell("echo $$; " + WAITS) as process:
        assert int(output(process).readline()) == process.pid


def test_the_commands_arguments_arrive_as_they_are() -> None:
    with shell('echo "$@"', "zero", "--grace", "--", "-x", "--") as process:
        assert output(process).read() == b"--grace -- -x --\n"


def test_passed_descriptors_reach_the_command() -> None:
    reader, writer = os.pipe()
    try:
        with shell(f"echo hello > /dev/fd/{writer}", pass_fds=(writer,)):
            assert os.read(reader, 100) == b"hello\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_command_starts_with_the_default_ctrl_c() -> None:
    shows_sigint = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    process = start_guarded([sys.executable, "-c", shows_sigint], stdout=subprocess.PIPE)
    with output(process) as said:
        assert said.read() == b"True\n"
    assert process.wait(10) == 0


@pytest.mark.parametrize("script", [SAYS_GOODBYE, WAITS, "sh -c 'sleep 1000' & " + WAITS])
def test_a_starter_killed_by_kill_9_leaves_nobody_behind(script: str) -> None:
    with starter(script) as process:
        assert {output(process).readline(), output(process).readline()} == {b"started\n", b"ready\n"}
        os.kill(process.pid, signal.SIGKILL)
        output(process).read()  # ends when the last process that holds the pipe has ended


def test_a_kill_9_of_the_starters_whole_group_leaves_nobody_behind() -> None:
    with starter(SAYS_GOODBYE) as process:
        assert {output(process).readline(), output(process).readline()} == {b"started\n", b"ready\n"}
        os.killpg(process.pid, signal.SIGKILL)
        assert output(process).read() == b"goodbye\n"


def test_ctrl_c_reaches_the_starter_and_not_the_command() -> None:
    with starter(SAYS_GOODBYE) as process:
        assert {output(process).readline(), output(process).readline()} == {b"started\n", b"ready\n"}
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert output(process).readline() == b"interrupted None\n"
        assert process.stdin is not None
        process.stdin.close()
        assert output(process).read() == b"goodbye\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_guard_itself_ignores_ctrl_c_and_hands_on_a_request_to_stop(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, "--", "/bin/sh", "-c", SAYS_GOODBYE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert output(process).readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(number)
        assert process.wait(10) == 3
        assert output(process).read() == b"goodbye\n"


def test_a_command_whose_guard_was_killed_is_ended_by_stop() -> None:
    with shell("echo $PPID; " + WAITS) as process:
        os.kill(int(output(process).readline()), signal.SIGKILL)
        assert process.stop() == -signal.SIGKILL
        output(process).read()  # ends when the last process that holds the pipe has ended


def test_a_guard_that_is_ended_before_it_starts_anything_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C can come while the guard is being started: no process id is known then, and 0 would mean ourselves."""
    ended = tmp_path / "python"
    ended.write_text("#!/bin/sh\nkill -INT $$\n")
    ended.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ended))
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
    with pytest.raises(OSError, match="cannot be started"):
        start_guarded(["true"])
    assert signalled == []
