"""The machine that a run was made on, in words that say nothing about whose it is; and who else used it."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path

BUSY_LOAD = 0.5
"""Load per core before a run from which on it is said that the machine is busy."""
BUSY_SHARE = 0.1
"""Share of the machine's CPU that others took during a run, the same."""


def describe() -> list[str]:
    """Lines about the machine."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release().partition('-')[0]} "
        f"{platform.machine()}, Python {platform.python_version()}",
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, load average at the start {load}",
    ]


def load_warning() -> str | None:
    """A sentence when other programs are at work before a run."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load / cores <= BUSY_LOAD:
        return None
    return f"the machine was busy at the start (load {load:.2f} on {cores} cores): compare ratios, not rates"


class Neighbours:
    """How much of the machine others use, and how much is stolen by other machines, from now on. Linux only."""

    def __init__(self, redis_seconds: float) -> None:
        self._before = _cpu(redis_seconds)

    def share(self, redis_seconds: float) -> float:
        """Of all CPU time; 0 where it cannot be known. Call it when all children but Redis have been waited for.

        `redis_seconds`: CPU time that the server has used.
        """
        before, after = self._before, _cpu(redis_seconds)
        if before is None or after is None:
            return 0.0
        whole, others = (now - then for now, then in zip(after, before, strict=True))
        return max(0.0, others) / whole if whole else 0.0


def _cpu(redis_seconds: float) -> tuple[float, float] | None:
    """CPU seconds since the start: of the whole machine, and of all but us."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    words = stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, idle, iowait, irq, softirq, stolen = (int(word) / os.sysconf("SC_CLK_TCK") for word in words)
    used = user + nice + system + irq + softirq + stolen
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used + idle + iowait, used - sum(usage.ru_utime + usage.ru_stime for usage in ours) - redis_seconds


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
