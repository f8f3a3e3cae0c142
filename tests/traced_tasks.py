"""Tasks for the tests of traces: they say which span is current where they run."""

from __future__ import annotations

from opentelemetry import trace

from jobstream import task


def _span() -> list[str]:
    span = trace.get_current_span().get_span_context()
    return [f"{span.trace_id:032x}", f"{span.span_id:016x}"]


@task
async def traced() -> list[str]:
    """In a coroutine."""
    return _span()


@task
def traced_thread() -> list[str]:
    """In a thread."""
    return _span()


@task(executor="process")
def traced_process() -> list[str]:
    """In a child process."""
    return _span()


@task
async def raises_its_input(text: str) -> None:
    """Raises what it was given."""
    raise ValueError(text)
