"""The systems that can be measured, by name. Adapters are loaded by the processes that run them, not here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A system, and what must be known of it before it runs."""

    name: str
    reference: str
    """`module:Class` of its adapter."""
    about: str
    packages: tuple[str, ...]
    """Distributions whose versions are printed."""
    rates: dict[int, int]
    """Slots → no-ops a second of one worker, roughly: how many jobs make a run long enough."""
    poll: float = 0.0
    """Seconds between two looks of an idle worker, for libraries that poll."""
    peer: bool = False
    """True when it needs an environment of its own, made from `peers/requirements-<name>.txt`."""

    def jobs(self, slots: int, *, most: int, seconds: float) -> int:
        """How many no-ops to run: for about so many seconds, at most `most`."""
        known = max((size for size in self.rates if size <= slots), default=min(self.rates))
        return min(most, max(200, round(self.rates[known] * seconds)))


_SYSTEMS = (
    Entry(
        "jobstream",
        "benchmarks.systems.jobstream:Jobstream",
        "its own worker and Queue, default settings",
        ("jobstream", "redis", "hiredis", "uvloop", "msgspec"),
        {10: 10_000, 100: 10_000},
        poll=0.05,
    ),
    Entry(
        "arq",
        "benchmarks.systems.arq:Arq",
        "stock, default settings: polls every 0.5 s",
        ("arq", "redis", "hiredis"),
        {10: 200, 100: 1_000},
        poll=0.5,
    ),
    Entry(
        "floor",
        "benchmarks.systems.floor:Floor",
        "the Redis work that a leased job with a record and two events cannot do without, batched in Lua; no library",
        ("hiredis",),
        {10: 40_000, 100: 50_000},
        poll=0.05,
    ),
    Entry(
        "arq-tuned",
        "benchmarks.systems.arq:TunedArq",
        "the same arq with poll_delay=0.01",
        ("arq", "redis", "hiredis"),
        {10: 1_000, 100: 1_000},
        poll=0.05,
    ),
    Entry(
        "saq",
        "benchmarks.systems.saq:Saq",
        "default settings",
        ("saq", "redis", "hiredis"),
        {10: 1_000, 100: 1_000},
        poll=0.05,
        peer=True,
    ),
    Entry(
        "taskiq",
        "benchmarks.systems.taskiq:Taskiq",
        "RedisStreamBroker and RedisAsyncResultBackend, default settings",
        ("taskiq", "taskiq-redis", "redis", "hiredis"),
        {10: 1_000, 100: 1_000},
        poll=0.05,
        peer=True,
    ),
    Entry(
        "streaq",
        "benchmarks.systems.streaq:Streaq",
        "default settings",
        ("streaq", "coredis", "anyio"),
        {10: 700, 100: 700},
        poll=0.05,
        peer=True,
    ),
)

SYSTEMS = {entry.name: entry for entry in _SYSTEMS}
DEFAULT = ("jobstream", "arq", "floor")
