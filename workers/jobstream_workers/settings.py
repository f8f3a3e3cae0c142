"""What a worker is told by its environment."""

from __future__ import annotations

import os

from pydantic import AnyHttpUrl, Field, field_validator

from jobstream.call import CallSettings
from jobstream.errors import ConfigurationError
from jobstream.files import FileSettings
from jobstream.job import QUEUE_NAME, RESERVED_QUEUES
from jobstream.logs import LogSettings
from jobstream.redis import RedisSettings
from jobstream.telemetry import TraceSettings
from jobstream.webhooks.settings import WebhookSettings
from jobstream_workers.claim import WEEK_SECONDS

MAX_DELAY_SECONDS = 4 * 86_400.0
"""Between two attempts to deliver a webhook: its record lives for two weeks after each."""


class WorkerSettings(RedisSettings, FileSettings, WebhookSettings, LogSettings, TraceSettings, CallSettings):
    """A worker's settings: `JOBSTREAM_…` in the environment or in `.env`."""

    tasks: str = Field(
        "jobstream_workers.tasks",
        description="Modules that hold the tasks, separated by commas; entry points are added.",
    )
    queues: str = Field(
        "default",
        description="Queues to serve, separated by commas, each with a weight if need be: `default:3,low`. "
        "While all have work, a queue of weight 3 gets three times the slots of one of weight 1.",
    )
    max_jobs: int = Field(10, ge=1, le=10_000, description="Jobs that a worker runs at once.")
    processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Child processes for CPU-bound tasks; empty: one per CPU.",
    )
    lease_seconds: float = Field(
        4.0, ge=1, description="A dead worker's jobs run again after this time; renewed at a third of it."
    )
    max_crashes: int = Field(
        3, ge=1, description="A job whose worker died so many times fails instead of being run again."
    )
    tenant_running: int = Field(
        0,
        ge=0,
        description="Jobs of one tenant that run at once, in all workers together; 0: any number. "
        "`jobstream limits set` has another for single tenants.",
    )
    tenant_headroom: int | None = Field(
        None,
        ge=0,
        description="Slots that a worker keeps, while several tenants have jobs for it, for those that have less than "
        "their share of it; 0: none; empty: one in ten, but none of less than five.",
    )
    missing_task_seconds: float = Field(
        86_400.0,
        ge=0,
        le=WEEK_SECONDS,
        description="A job whose task this worker lacks is left to other workers; it fails when it has waited, and no "
        "worker with its task was heard of, for this time.",
    )
    poll_seconds: float = Field(0.5, gt=0, le=1, description="Fallback poll: for jobs whose wake-up was lost.")
    shutdown_seconds: float = Field(
        10.0, ge=0, description="Time that running jobs get at shutdown; then they are given back to the queue."
    )
    kill_seconds: float = Field(
        5.0,
        ge=0,
        description="Time between SIGTERM and SIGKILL for a process task that was told to stop; a coroutine that does "
        "not stop is left behind 2 s later.",
    )
    arq_keep_result_seconds: float = Field(
        3600.0, ge=0, description="How long stock arq clients can read a result (arq's keep_result); 0: not at all."
    )
    worker_host: str = Field("127.0.0.1", description="Address for the worker's health and metrics.")
    worker_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for the worker's /livez, /readyz and /metrics; 0: any free one; empty: none.",
    )
    public_url: AnyHttpUrl | None = Field(
        None, description="Where clients reach the API, for the links in webhooks; without it they are paths."
    )
    webhook_slots: int = Field(
        50,
        ge=0,
        le=1000,
        description="Webhooks that a worker delivers at once, beside its jobs; 0: that is left to other workers.",
    )
    webhook_receiver_slots: int = Field(
        5, ge=1, description="Webhooks that are under way to one receiver at once, from all workers together."
    )
    webhook_timeout: float = Field(15.0, gt=0, le=300, description="Seconds that a receiver has for its answer.")
    webhook_retries: str = Field(
        "5,300,1800,7200,18000,36000,50400,72000,86400",
        description="Seconds between the attempts to deliver a webhook, separated by commas.",
    )

    @field_validator("queues")
    @classmethod
    def _queues(cls, value: str) -> str:
        if not parse_queues(value):
            raise ConfigurationError("JOBSTREAM_QUEUES names no queue")
        return value

    @property
    def drain_seconds(self) -> float:
        """How long a worker may need from SIGTERM to its end: it must not be killed before."""
        return self.shutdown_seconds + self.kill_seconds + 2

    @field_validator("webhook_retries")
    @classmethod
    def _retries(cls, value: str) -> str:
        parse_delays(value)
        return value

    @property
    def kept_slots(self) -> int:
        """JOBSTREAM_TENANT_HEADROOM, or what stands for it when it is empty."""
        if self.tenant_headroom is not None:
            return self.tenant_headroom
        return 0 if self.max_jobs < 5 else max(1, self.max_jobs // 10)

    @property
    def webhook_delays(self) -> tuple[float, ...]:
        """JOBSTREAM_WEBHOOK_RETRIES as a tuple."""
        return parse_delays(self.webhook_retries)

    @property
    def task_modules(self) -> tuple[str, ...]:
        """JOBSTREAM_TASKS as a tuple."""
        return _words(self.tasks)

    @property
    def queue_weights(self) -> dict[str, int]:
        """JOBSTREAM_QUEUES: name → weight."""
        return parse_queues(self.queues)

    @property
    def queue_names(self) -> tuple[str, ...]:
        """JOBSTREAM_QUEUES as a tuple of names."""
        return tuple(self.queue_weights)


def parse_queues(value: str) -> dict[str, int]:
    """`default:3,low` → {"default": 3, "low": 1}. Raises ConfigurationError."""
    weights: dict[str, int] = {}
    for word in _words(value):
        name, colon, weight = word.partition(":")
        if not QUEUE_NAME.match(name) or name in RESERVED_QUEUES:
            raise ConfigurationError(f"JOBSTREAM_QUEUES: {name!r} cannot be a queue's name")
        if colon and not (weight.isdecimal() and 1 <= int(weight) <= 1000):
            raise ConfigurationError(f"JOBSTREAM_QUEUES: the weight of {name!r} is a whole number from 1 to 1000")
        weights[name] = int(weight) if colon else 1
    return weights


def parse_delays(value: str) -> tuple[float, ...]:
    """`5,300` → (5.0, 300.0). Raises ConfigurationError."""
    try:
        delays = tuple(map(float, _words(value)))
    except ValueError:
        delays = (-1.0,)
    if not all(0 <= delay <= MAX_DELAY_SECONDS for delay in delays) or len(delays) > 50:
        raise ConfigurationError("JOBSTREAM_WEBHOOK_RETRIES is up to 50 numbers of seconds, none above four days")
    return delays


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())
