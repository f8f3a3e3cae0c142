"""A control group with a memory limit, where this machine lets us make one: the kernel kills who goes beyond it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """Made by `memory_group`. Sources: cgroup-v1/memory.rst, cgroup-v2.rst of the kernel's documentation."""

    def __init__(self, path: Path, limits: dict[str, str]) -> None:
        self._path, self._limits = path, limits

    def take_in(self, pid: int, *, limit: int) -> None:
        """From now on what the process takes, and what its children take, may be `limit` bytes."""
        for name, value in self._limits.items():
            with suppress(FileNotFoundError):  # no swap, nothing to limit
                (self._path / name).write_text(value or str(limit))
        (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(FileNotFoundError):
                lines = (self._path / name).read_text().splitlines()
                return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
        raise AssertionError("the group keeps no count")

    def remove(self) -> None:
        """Remove the group. Its processes have been ended; the kernel may need a moment to see that."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return self._path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)


@contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """A group, or None where this machine has none for us (no root, a read-only mount, macOS)."""
    group = _made()
    try:
        yield group
    finally:
        if group is not None:
            group.remove()


def _made() -> MemoryGroup | None:
    name = f"jobstream-test-{os.getpid()}-{secrets.token_hex(4)}"
    for parent, limits in _parents():
        path = parent / name
        try:
            path.mkdir()
        except OSError:
            continue
        group = MemoryGroup(path, limits)
        if all(os.access(path / file, os.W_OK) for file in (next(iter(limits)), "cgroup.procs")):
            return group
        group.remove()
    return None


def _parents() -> Iterator[tuple[Path, dict[str, str]]]:
    """Where a group can be, if anywhere, and the files of its limit; an empty value stands for the limit."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                for place in (path.lstrip("/"), ""):
                    yield GROUPS / "memory" / place, {"memory.limit_in_bytes": "", "memory.memsw.limit_in_bytes": ""}
            elif not controllers and (GROUPS / "cgroup.controllers").exists():
                # A group that has processes of its own has no limited ones inside it: so beside ours, or at the root.
                for parent in (GROUPS / path.lstrip("/")).parent, GROUPS:
                    with suppress(OSError):
                        (parent / "cgroup.subtree_control").write_text("+memory")
                    yield parent, {"memory.max": "", "memory.swap.max": "0"}
