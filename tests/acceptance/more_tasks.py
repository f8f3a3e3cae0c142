"""A task of a worker that is started later than the API."""

from __future__ import annotations

from jobstream import task


@task
async def newcomer(name: str) -> str:
    """Greet somebody."""
    return f"hello {name}"
