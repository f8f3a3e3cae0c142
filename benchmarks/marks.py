"""What the jobs of a benchmark note in their worker: how many ran, when the first began, how late each was."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Marks:
    """Notes of one worker process. The clock is the system's monotonic one, which all processes share."""

    ran: int = 0
    first_ns: int = 0
    first_cpu_ns: int = 0
    """CPU time that the process had used when its first job began: what the start of the library cost."""
    delays_ns: list[int] = field(default_factory=list)

    def noop(self) -> None:
        """A job that does nothing runs."""
        if not self.ran:
            self.first_ns = time.monotonic_ns()
            self.first_cpu_ns = time.process_time_ns()
        self.ran += 1

    def stamp(self, sent_ns: int) -> None:
        """A job that was submitted at `sent_ns` has begun."""
        self.delays_ns.append(time.monotonic_ns() - sent_ns)

    def take(self) -> dict[str, Any]:
        """The notes so far; begin a new page."""
        page = asdict(self)
        self.__init__()  # type: ignore[misc]
        return page


MARKS = Marks()
