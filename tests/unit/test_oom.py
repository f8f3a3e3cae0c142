"""The kernel's count of processes killed for want of memory: cgroup v2 and v1, containers, machines without groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobstream_workers.oom import oom_kills

EVENTS = "low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
VMSTAT = "nr_free_pages 1\noom_kill 3\nunevictable_pgs_culled 0\n"
V2 = "0::/system.slice/worker.service\n"
V1 = "12:cpu,cpuacct:/a\n9:memory:/docker/0a1b\n0::/\n"


@pytest.mark.parametrize(
    ("group", "counter", "content"),
    [
        (V2, "sys/fs/cgroup/system.slice/worker.service/memory.events", EVENTS),
        ("0::/\n", "sys/fs/cgroup/memory.events", EVENTS),  # a container with a namespace of its own
        (V2, "sys/fs/cgroup/memory.events", EVENTS),  # one without
        (V1, "sys/fs/cgroup/memory/docker/0a1b/memory.oom_control", CONTROL),
        (V1, "sys/fs/cgroup/memory/memory.oom_control", CONTROL),
        (V2, "proc/vmstat", VMSTAT),
        (None, "proc/vmstat", VMSTAT),
    ],
)
def test_the_count_is_found(tmp_path: Path, group: str | None, counter: str, content: str) -> None:
    _write(tmp_path / counter, content)
    if group is not None:
        _write(tmp_path / "proc/self/cgroup", group)
    assert oom_kills(tmp_path) == 3


def test_the_own_group_counts_not_the_machine(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", V2)
    _write(tmp_path / "proc/vmstat", "oom_kill 99\n")
    _write(tmp_path / "sys/fs/cgroup/system.slice/worker.service/memory.events", EVENTS)
    assert oom_kills(tmp_path) == 3


def test_a_machine_that_does_not_count_has_none(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    _write(tmp_path / "proc/self/cgroup", V1)
    _write(tmp_path / "sys/fs/cgroup/memory/docker/0a1b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    assert oom_kills(tmp_path) == 0  # before Linux 4.13


def test_this_machine_can_be_asked() -> None:
    assert oom_kills() >= 0


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
