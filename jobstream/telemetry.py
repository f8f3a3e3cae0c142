"""Telemetry: where the spans of a process go, when it is told to make any."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

TraceKind = Literal["off", "otlp"]

_finishing: list[Callable[[], None]] = []


class TraceSettings(BaseSettings):
    """Whether there are traces. Where they go, and how many, OpenTelemetry's own variables say."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    traces: TraceKind = Field(
        "off",
        description="otlp: traces of requests, jobs and webhooks by OTLP over HTTP, as OTEL_EXPORTER_OTLP_ENDPOINT, "
        "OTEL_TRACES_SAMPLER and their like say; needs jobstream[traces].",
    )


def configure(kind: TraceKind, *, service: str) -> None:
    """Export the traces of this process. `service`: its name, unless OTEL_SERVICE_NAME has one.

    Raises ConfigurationError when the extra `traces` is not installed.
    """
    if kind == "off":
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError("JOBSTREAM_TRACES=otlp needs jobstream[traces] to be installed") from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(discreet())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _finishing.append(provider.shutdown)


def discreet() -> SpanProcessor:
    """Takes queries out of spans: they carry tickets, words that are searched for, and addresses."""
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor

    class Discreet(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            if span.attributes and "url.query" in span.attributes:
                span.set_attribute("url.query", "REDACTED")

    return Discreet()


def finish() -> None:
    """Export what is left, in a process that is about to end by a signal or `os._exit`: then nothing else does."""
    while _finishing:
        _finishing.pop()()
