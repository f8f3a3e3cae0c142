"""Runs a command that never outlives its starter, not even one killed by `kill -9`.

The guard is a small process between the two. Its stdin is a pipe that the starter holds open: the system closes it
when the starter ends, however it ends, and the guard then stops the command: SIGTERM, a grace, SIGKILL.

Run by its path, with the standard library alone: it must start fast, whatever the starter's imports cost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL, unless told otherwise."""
LEFTOVER_GRACE = 0.5
"""Seconds that processes which a command leaves behind get between the two."""
CANNOT_START = 127
"""The guard's exit code when there is no command to run, as a shell's."""

Output = int | IO[bytes] | None


class GuardedProcess:
    """A running command and the guard beside it. Made by `start_guarded`; stop it, or let go of it by ending."""

    def __init__(self, guard: subprocess.Popen[bytes], pid: int) -> None:
        self._guard = guard
        self._over = False
        self.pid = pid
        """The command's process id, which is its process group's too."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """The command's output, when it was started with `stdout=subprocess.PIPE`."""
        return self._guard.stdout

    def poll(self) -> int | None:
        """The command's exit code, 128 + n when signal n ended it; None while it runs; -n when the guard was killed."""
        code = self._guard.poll()
        return code if code is None else self._ended(code)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end by itself. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        return self._ended(self._guard.wait(timeout))

    def terminate(self) -> None:
        """Ask the command to stop, and return at once: SIGTERM now, SIGKILL after the grace."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def kill(self) -> None:
        """Kill the command and every process of its group now."""
        if self.poll() is None:
            _signal_group(self.pid, signal.SIGKILL)
        self.terminate()

    def stop(self, timeout: float | None = None) -> int:
        """Stop the command and wait until it has ended; after `timeout` seconds it is killed, whatever its grace.

        Returns the exit code. Stopping what has ended already is not an error.
        """
        self.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def _ended(self, code: int) -> int:
        if not self._over:
            self._over = True  # once only: the process id may be somebody else's later
            if code < 0:  # somebody killed the guard itself: the command must not go on without it
                _signal_group(self.pid, signal.SIGKILL)
            self.terminate()  # closes the pipe
        return code


def start_guarded(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    grace: float = GRACE,
    stdout: Output = None,
    stderr: Output = None,
    cwd: str | Path | None = None,
    pass_fds: Sequence[int] = (),
) -> GuardedProcess:
    """Start a command under a guard, in a session of its own: Ctrl-C in the terminal reaches only the starter.

    `grace`: seconds between SIGTERM and SIGKILL when it is stopped. `pass_fds`: as in `subprocess.Popen`; they stay
    open until guard and command have both ended. The other parameters are Popen's; stdin is /dev/null. Raises OSError
    when the command cannot be started. A starter that forks without exec shares the guard's pipe with that child.
    """
    said, say = os.pipe()
    try:
        options = ["--grace", str(grace), "--say", str(say), *(f"--pass-fd={fd}" for fd in pass_fds)]
        guard = subprocess.Popen(
            # -I: the directory of this file must not become an import path; -S: no site-packages, for speed.
            [sys.executable, "-I", "-S", __file__, *options, "--", *argv],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=(say, *pass_fds),
            start_new_session=True,
        )
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(say)
    with open(said, encoding="utf-8") as answer:
        pid = answer.read()
    if not pid.isdecimal():  # no command: it could not be started, or the guard was ended before it came to that
        assert guard.stdin is not None
        guard.stdin.close()
        code = guard.wait()
        raise OSError(f"{argv[0]} cannot be started: {pid or f'its guard ended with exit code {code}'}")
    return GuardedProcess(guard, int(pid))


def main(arguments: Sequence[str] | None = None) -> int:
    """The guard's own process. Returns the command's exit code."""
    parser = argparse.ArgumentParser(prog="guard", description=__doc__, usage="%(prog)s [--grace SECONDS] -- CMD ARG…")
    parser.add_argument("--grace", type=float, default=GRACE, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--say", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pass-fd", type=int, action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    signals = _Signals()
    try:
        command = subprocess.Popen(
            options.command, stdin=subprocess.DEVNULL, pass_fds=options.pass_fd, start_new_session=True
        )
    except OSError as error:
        _say(options.say, error.strerror or str(error))
        print(f"guard: {options.command[0]}: {error.strerror}", file=sys.stderr)
        return CANNOT_START
    _say(options.say, str(command.pid))
    _wait(command, signals, options.grace)
    _end_group(command.pid)
    return command.returncode if command.returncode >= 0 else 128 - command.returncode


class _Signals:
    """Signals as bytes of a pipe, so that one `select` waits for them and for the starter's end."""

    def __init__(self) -> None:
        self.pipe, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        # A handler, not SIG_IGN: the command would inherit that across exec and be deaf to Ctrl-C for ever.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def told_to_stop(self) -> bool:
        """Take what has come in; true when SIGTERM or SIGHUP was among it."""
        return not {signal.SIGTERM, signal.SIGHUP}.isdisjoint(os.read(self.pipe, 4096))


def _wait(command: subprocess.Popen[bytes], signals: _Signals, grace: float) -> None:
    """Until the command has ended, by itself or because the guard was told to stop it."""
    stdin = 0
    while command.poll() is None:
        ready, _, _ = select.select([stdin, signals.pipe], [], [])
        if (signals.pipe in ready and signals.told_to_stop()) or (stdin in ready and not os.read(stdin, 4096)):
            command.terminate()
            try:
                command.wait(grace)
            except subprocess.TimeoutExpired:
                _signal_group(command.pid, signal.SIGKILL)
                command.wait()


def _end_group(group: int) -> None:
    """What the command has left running must not stay either. Politely first: multiprocessing cleans up after it."""
    deadline = time.monotonic() + LEFTOVER_GRACE
    left = _signal_group(group, signal.SIGTERM)
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = _signal_group(group, 0)
    if left:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """False when nobody is left there (macOS answers EPERM for a group of zombies)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


def _say(fd: int | None, text: str) -> None:
    if fd is not None:
        with open(fd, "w", encoding="utf-8") as starter:
            starter.write(text)


if __name__ == "__main__":
    sys.exit(main())
