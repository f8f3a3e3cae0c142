"""Processes that live and die together: the first one that ends, or a signal, ends them all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NamedTuple

from jobstream.guard import GuardedProcess, start_guarded

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL: above all the time that the processes give themselves."""

POLL_SECONDS = 0.1


class Ended(NamedTuple):
    """A process has ended by itself."""

    name: str
    code: int


Happening = signal.Signals | Ended


def supervise(
    commands: Mapping[str, Sequence[str]],
    happened: SimpleQueue[Happening],
    *,
    env: Mapping[str, str],
    poll: Callable[[], None],
    stopping: Callable[[], None],
) -> Ended | None:
    """Run the commands until a signal comes (None) or one of them ends (which one).

    `happened` comes from `listening()`, so that signals of before are not lost. All have ended when this returns: they
    are told by SIGTERM; a second signal kills them. `poll` is called ten times a second; what it raises ends them too.
    `stopping` is called once, when a signal has come.
    """
    processes: dict[str, GuardedProcess] = {}
    try:
        for name, argv in commands.items():
            processes[name] = start_guarded(argv, env=env, grace=GRACE)
            _report_end(name, processes[name], happened)
        ended = _first(happened, poll)
        if ended is None:
            stopping()
        return ended
    finally:
        _stop(processes, happened)


@contextlib.contextmanager
def listening() -> Iterator[SimpleQueue[Happening]]:
    """Stop signals as entries of a queue, whose `put` may be called from a signal handler."""
    happened: SimpleQueue[Happening] = SimpleQueue()

    def note(number: int, frame: FrameType | None) -> None:
        happened.put(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield happened
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_end(name: str, process: GuardedProcess, happened: SimpleQueue[Happening]) -> None:
    def report() -> None:
        happened.put(Ended(name, process.wait()))

    threading.Thread(target=report, name=f"wait for {name}", daemon=True).start()


def _first(happened: SimpleQueue[Happening], poll: Callable[[], None]) -> Ended | None:
    while True:
        try:
            happening = happened.get(timeout=POLL_SECONDS)
        except Empty:
            poll()
        else:
            return happening if isinstance(happening, Ended) else None


def _stop(processes: Mapping[str, GuardedProcess], happened: SimpleQueue[Happening]) -> None:
    for process in processes.values():
        process.terminate()
    while any(process.poll() is None for process in processes.values()):
        try:
            happening = happened.get(timeout=POLL_SECONDS)
        except Empty:
            continue
        if isinstance(happening, signal.Signals):
            for process in processes.values():
                process.kill()
