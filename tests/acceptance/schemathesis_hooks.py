"""What the OpenAPI document cannot say of a request, taken out of it before schemathesis makes requests of its own."""

from __future__ import annotations

from typing import Any

import schemathesis

UNSAYABLE = {
    "run_at",  # not with `delay`, and at most a year from now
    "cursor",  # what a list has given
    "q",  # words, by a rule of their own
    "Idempotency-Key",  # stands for one request
    "callback_url",  # where it may lead is up to the world
    "after",  # jobs that are there
}


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Parameters whose valid values depend on other parameters, or on what was answered before."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            parameters = operation.get("parameters", [])
            operation["parameters"] = [one for one in parameters if one["name"] not in UNSAYABLE]
