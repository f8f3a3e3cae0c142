"""A sampling profiler of the main thread: cheap enough not to change what it looks at."""

from __future__ import annotations

import json
import selectors
import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

INTERVAL = 0.001
"""Seconds between two looks."""

Place = tuple[str, str]
"""A file and a function in it."""


class Sampler:
    """Counts the stacks that it meets, but for the event loop's wait. Writes the thread's CPU time and them as JSON:
    `{"cpu_ns": …, "stacks": [[[[file, function], …innermost last], count], …]}`.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._stacks: Counter[tuple[Place, ...]] = Counter()
        self._began_ns = 0

    def __enter__(self) -> Self:
        self._began_ns = time.thread_time_ns()
        signal.signal(signal.SIGALRM, self._look)
        # Of real time: timers of CPU time tick only every 4 ms or 10 ms on Linux.
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen = {"cpu_ns": time.thread_time_ns() - self._began_ns, "stacks": list(self._stacks.items())}
        self._path.write_text(json.dumps(seen), encoding="utf-8")

    def _look(self, number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename == selectors.__file__:
            return
        stack: list[Place] = []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1
