"""What the API process is told by its environment."""

from __future__ import annotations

from typing import Literal

from pydantic import AnyHttpUrl, Field, field_validator

from jobstream.files import FileSettings
from jobstream.limits import Rate, SubmitLimits
from jobstream.logs import LogSettings
from jobstream.redis import RedisSettings
from jobstream.search import WORDS_MAX
from jobstream.telemetry import TraceSettings
from jobstream.webhooks.settings import WebhookSettings
from jobstream_api.auth.settings import AuthSettings


class ApiSettings(RedisSettings, FileSettings, AuthSettings, WebhookSettings, LogSettings, TraceSettings):
    """The API's settings: `JOBSTREAM_…` in the environment or in `.env`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    public_url: AnyHttpUrl | None = Field(
        None,
        description="Where clients reach the service when a proxy changes its host or path: "
        "https://example.com/background. Its path is what links begin with.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed; * for all. Empty: nobody's.",
    )
    cors_origins: list[str] = Field(
        [],
        description="Origins whose scripts may use the API from a browser, as a JSON list such as "
        '["https://app.example.com"]. Empty: none.',
    )
    accepted_status: Literal[202, 303] = Field(
        202, description="What a submit answers: 202, or 303 for all tasks; a task may choose 303 for itself."
    )
    max_head_bytes: int = Field(
        64 * 1024, ge=1024, description="Largest request line and headers together; beyond that 431."
    )
    max_body_bytes: int = Field(10 * 1024**2, ge=1, description="Largest JSON or form body, without files.")
    max_batch_bytes: int = Field(32 * 1024**2, ge=1, description="Largest body of POST /jobs/batch.")
    max_file_bytes: int = Field(2 * 1024**3, ge=1, description="Largest uploaded file.")
    max_files: int = Field(100, ge=1, description="Uploaded files per job.")
    file_types: str = Field(
        "",
        description="Media types that uploads may have, separated by commas: image/*,application/pdf. Empty: any. "
        "What a client says of its file is not proof of what is in it.",
    )
    files_link_seconds: int = Field(
        60,
        ge=0,
        le=86_400,
        description="With files on S3: downloads are sent to the bucket by a link that is signed for so long; "
        "0: they go through the API, for clients that cannot reach the bucket.",
    )
    queue_depth: int = Field(
        0,
        ge=0,
        description="Jobs that a queue may hold, those that are scheduled or run included; a submit beyond is refused "
        "(503). 0: any number.",
    )
    tenant_rate: str = Field(
        "",
        description="Jobs that a tenant may submit in a time: 100/m, 1000/10m, 5/30s; more are refused (429). "
        "Empty: any number. `jobstream limits set` has another rate for single tenants.",
    )
    max_schedules: int = Field(100, ge=0, description="Schedules that a tenant may have.")
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence after which an event stream says `: ping`.")
    max_streams: int = Field(
        10_000, ge=0, description="Open event streams; a client beyond that is told to come back later."
    )
    search_words: int = Field(
        WORDS_MAX, ge=0, le=64, description="Words of its input and tags by which a job is found; 0 turns search off."
    )

    @field_validator("tenant_rate")
    @classmethod
    def _rate(cls, value: str) -> str:
        Rate.parse(value)
        return value

    @property
    def accepted_file_types(self) -> tuple[str, ...]:
        """JOBSTREAM_FILE_TYPES as a tuple."""
        return tuple(word.strip().lower() for word in self.file_types.split(",") if word.strip())

    @field_validator("accepted_status", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @property
    def submit_limits(self) -> SubmitLimits:
        """What submits are held to."""
        return SubmitLimits(depth=self.queue_depth, rate=Rate.parse(self.tenant_rate))
