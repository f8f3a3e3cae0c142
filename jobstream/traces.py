"""Traces (OpenTelemetry, W3C Trace Context): one from the request through Redis to the attempts and the webhooks.

A traced submit puts its `traceparent` into the job's payload; each attempt is a span below it, current while the task
runs. OpenTelemetry is not imported here: in a process where nobody else has, nothing is traced, and nothing is paid.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import Attributes

Carrier = Mapping[str, str]
"""`traceparent`, and `tracestate` if there is one."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_STATE_LENGTH = 512


def tracer() -> Tracer | None:
    """Makes spans; None while nobody has set a tracer provider."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return trace.get_tracer("jobstream")


def current() -> dict[str, str]:
    """By what the span that is current here is known elsewhere; nothing when there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import trace

    if not trace.get_current_span().get_span_context().is_valid:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def checked(carrier: object) -> Carrier | None:
    """A carrier as it was stored. None for none, and for one that is not understood."""
    if not isinstance(carrier, dict) or not isinstance(parent := carrier.get("traceparent"), str):
        return None
    if not _TRACEPARENT.match(parent):
        return None
    state = carrier.get("tracestate")
    known = isinstance(state, str) and 0 < len(state) <= _STATE_LENGTH
    return {"traceparent": parent, "tracestate": str(state)} if known else {"traceparent": parent}


def trace_id(carrier: Carrier | None) -> str | None:
    """32 hex digits."""
    found = _TRACEPARENT.match(carrier["traceparent"]) if carrier else None
    return found[1] if found else None


@contextlib.contextmanager
def below(carrier: Carrier | None) -> Iterator[None]:
    """What is done in the block belongs to that trace: in a child process, whose worker makes the attempt's span."""
    if not carrier or "opentelemetry.trace" not in sys.modules:
        yield
        return
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(dict(carrier)))
    try:
        yield
    finally:
        context.detach(token)


@contextlib.contextmanager
def attempt_span(tracer: Tracer, name: str, carrier: Carrier | None, attributes: Attributes) -> Iterator[Span]:
    """A span of an attempt: below the submit, to which it links as well, and current in the block.

    What is raised inside is not written into it: it may quote the input.
    """
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(dict(carrier or {}), context=Context())
    submitted = trace.get_current_span(parent).get_span_context()
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        links=[trace.Link(submitted)] if submitted.is_valid else None,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def note_failure(span: Span, code: str) -> None:
    """The attempt has failed; `code` is that of its problem."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
