"""How many processes the kernel has killed for want of memory, as counted where this process lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int:
    """The count of this process's control group, else of the whole machine; 0 where none is kept (macOS).

    The kernel counts a process before it kills it. Sources: cgroup-v2.rst (memory.events), cgroup-v1/memory.rst
    (memory.oom_control), /proc/vmstat; all have a line `oom_kill N`.
    """
    for counter in _counters(root):
        with suppress(OSError):
            for line in counter.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _counters(root: Path) -> Iterator[Path]:
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # A container may not see its group at the path that the host has for it, but as the root of the mount.
            for place in (path.lstrip("/"), ""):
                if not controllers:
                    yield groups / place / "memory.events"
                elif "memory" in controllers.split(","):
                    yield groups / "memory" / place / "memory.oom_control"
    yield root / "proc/vmstat"
