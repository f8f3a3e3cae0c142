"""What the OpenAPI document says of failures: which an operation can answer, and that each is a problem (RFC 9457)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute

from jobstream_api.auth.document import rules_of
from jobstream_api.problems import MEDIA_TYPE

PROBLEM_REF = "#/components/schemas/Problem"

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "An error (RFC 9457)",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "attempt": {"type": "integer"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer (RFC 6901)"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}

_AS_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_REF}}}

FAILURE: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is at fault", "content": _AS_PROBLEM},
    "5XX": {"description": "The service, its store or the task is at fault", "content": _AS_PROBLEM},
}
"""What every operation may answer; the document that names it must be made by `OpenApi`."""

HEADERS = {
    "RateLimit": "How many jobs may be submitted now (`r`), and in how many seconds all of the quota is there (`t`)",
    "RateLimit-Policy": "How many jobs may be submitted (`q`) in how many seconds (`w`)",
    "Retry-After": "Seconds until it is worth asking again",
    "WWW-Authenticate": "How to say who is asking (RFC 6750)",
}

_OF_STATUS = {
    "401": ["WWW-Authenticate"],
    "403": ["WWW-Authenticate"],
    "429": ["Retry-After", "RateLimit", "RateLimit-Policy"],
    "503": ["Retry-After"],
}

SUBMITTING = {"/jobs/batch", "/jobs/cancel", "/jobs/retry", "/schedules/{schedule_name}/run"}
"""Paths, beside those of the tasks, by which a job is stored: quota and depth hold for them."""

_CREDENTIALS = {"401": "No key, token or ticket, or not a valid one", "403": "It lacks the scope"}
_AWAY = {"503": "Redis is away"}
_OF_A_JOB = {"404": "No such job", "410": "The job was purged within the last day"}
_OF_PARAMETERS = {"422": "A parameter has no meaning"}
_OF_A_BODY = {
    "400": "The body cannot be parsed",
    "413": "The body is too large",
    "415": "The media type is not accepted",
    "422": "The body, or a parameter, is not valid",
}
_OF_A_SUBMIT = {
    "409": "The first request with this `Idempotency-Key` is still under way",
    "422": "A job or a parameter is not valid, or the `Idempotency-Key` stands for another request",
    "429": "More jobs than the quota lets through; nothing was accepted",
    "503": "Redis is away, or a queue is full; nothing was accepted",
}
_OF_A_RESULT = {
    "422": "The task refused its input",
    "500": "The task failed",
    "504": "The task took too long",
}


def problems(errors: dict[str, str]) -> dict[str, Any]:
    """Responses: status → what it means here."""
    return {
        status: {
            "description": text,
            "content": _AS_PROBLEM,
            **({"headers": headers(*_OF_STATUS[status])} if status in _OF_STATUS else {}),
        }
        for status, text in errors.items()
    }


def headers(*names: str, among: dict[str, str] = HEADERS) -> dict[str, Any]:
    """Headers of a response, as the document describes them."""
    return {name: {"schema": {"type": "string"}, "description": among[name]} for name in names}


def add_failures(document: dict[str, Any], routes: Iterable[BaseRoute], *, asks: bool, tasks: Iterable[str]) -> None:
    """Name the failures of the routes' operations, and those of these tasks' that come from the gate (`asks`: it is
    not open). What an operation names itself stays."""
    for context in iter_route_contexts(list(routes)):
        route = context.original_route
        if not isinstance(route, APIRoute) or context.path_format is None:
            continue
        rules = rules_of(route)
        public = not rules or rules[0] is None
        for method in route.methods or ():
            operation = document["paths"].get(context.path_format, {}).get(method.lower())
            if operation is not None:
                _name(operation, _failures_of(context.path_format, operation, public=public), asks=asks and not public)
    for task in tasks:
        for path in (f"/{task}", f"/{task}/{{job_id}}"):
            for operation in document["paths"].get(path, {}).values():
                _name(operation, {}, asks=asks)


def _failures_of(path: str, operation: dict[str, Any], *, public: bool) -> dict[str, str]:
    found: dict[str, str] = {} if public else dict(_AWAY)
    if any(parameter["in"] != "path" for parameter in operation.get("parameters", ())):
        found |= _OF_PARAMETERS
    if "{job_id}" in path:
        found |= _OF_A_JOB
    elif "{" in path:
        found |= {"404": "There is none of that name"}
    if "requestBody" in operation:
        found |= _OF_A_BODY
    if path in SUBMITTING:
        found |= _OF_A_SUBMIT
    if path == "/readyz":
        found |= {"503": "Redis is away, or the process is shutting down"}
    if path == "/jobs/batch":
        found |= {"413": "The body is too large, or more jobs than quota or queue ever let through at once"}
    if path == "/jobs/{job_id}/retry":
        found |= {"409": "The job has neither failed nor was it cancelled"}
    if path == "/jobs/{job_id}/result":
        found |= _OF_A_RESULT
    return found


def _name(operation: dict[str, Any], found: dict[str, str], *, asks: bool) -> None:
    if asks:
        found = _CREDENTIALS | found
    responses = operation["responses"]
    named = problems({status: text for status, text in found.items() if status not in responses})
    operation["responses"] = dict(sorted((responses | named).items()))
