"""Errors on the wire: every response that is not a success is problem+json (RFC 9457), and no stack trace leaves."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jobstream.errors import (
    FieldError,
    Forbidden,
    InvalidParameter,
    JobstreamError,
    MalformedBody,
    RedisUnavailable,
    Unauthorized,
)
from jobstream.problem import problem
from jobstream.redis import is_unavailable
from jobstream.task import json_pointer

logger = logging.getLogger("jobstream.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
"""What a 503 asks clients to wait."""


def problem_response(members: dict[str, Any], *, instance: str, headers: dict[str, str] | None = None) -> Response:
    """A response of a problem object; its `status` is the response's."""
    return Response(
        msgspec.json.encode(members | {"instance": instance}),
        status_code=members["status"],
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def respond(error: Exception, request: Request) -> Response:
    """The response to any error."""
    members, headers = described(error, request)
    return problem_response(members, instance=request.url.path, headers=headers)


def described(error: Exception, request: Request) -> tuple[dict[str, Any], dict[str, str]]:
    """The problem that any error is, and the headers of the response to it."""
    known = _known(error)
    if known is None:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        known = JobstreamError("See the service's log.")
    return problem(known), _headers(known)


def _headers(error: JobstreamError) -> dict[str, str]:
    if isinstance(error, Unauthorized):  # RFC 6750, section 3
        return {"WWW-Authenticate": 'Bearer realm="jobstream"' + (', error="invalid_token"' if error.given else "")}
    if isinstance(error, Forbidden):
        challenge = f'Bearer realm="jobstream", error="insufficient_scope", scope="{error.scope}"'
        return {"WWW-Authenticate": challenge}
    return {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.status == 503 else {}


class ProblemRoute(APIRoute):
    """A route that answers its own errors, so that a router in somebody else's app does not depend on the app's."""

    allowed: frozenset[str] = frozenset()
    """The methods of all routes of this path; see `name_allowed_methods`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's own 405 would name only the methods of this one route."""
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        refusal = HTTPException(405, headers={"Allow": ", ".join(sorted(self.allowed))})
        await respond_http(refusal, Request(scope))(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                return respond_http(error, request)
            except Exception as error:
                return respond(error, request)

        return answer


def respond_http(error: HTTPException, request: Request) -> Response:
    """The framework's own errors (404 for no route, 405, …) as problems, with their headers."""
    title = HTTPStatus(error.status_code).phrase
    members = {
        "type": "about:blank",
        "title": title,
        "status": error.status_code,
        "detail": str(error.detail or title),
        "code": title.lower().replace(" ", "-"),
    }
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers.setdefault("Allow", "GET, HEAD")  # static files: Starlette names none
    return problem_response(members, instance=request.url.path, headers=headers)


def name_allowed_methods(router: APIRouter) -> None:
    """Tell each route what the others of its path allow (RFC 9110, section 10.2.1). Call it after the last route."""
    methods: defaultdict[str, set[str]] = defaultdict(set)
    routes = [route for route in router.routes if isinstance(route, ProblemRoute)]
    for route in routes:
        methods[route.path].update(route.methods or ())
    for route in routes:
        route.allowed = frozenset(methods[route.path])


def install(app: FastAPI) -> None:
    """Answer what no route of ours answers: unknown paths, wrong methods, errors of the middle."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond_http(error, request)

    async def other(request: Request, error: Exception) -> Response:
        return respond(error, request)

    app.add_exception_handler(HTTPException, http)
    for kind in (RequestValidationError, JobstreamError, Exception):
        app.add_exception_handler(kind, other)


def _known(error: Exception) -> JobstreamError | None:
    if isinstance(error, JobstreamError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, ClientDisconnect):
        return MalformedBody("The client went away before its body was complete")
    if is_unavailable(error):
        logger.warning("Redis is away: %s", type(error).__name__)
        return RedisUnavailable("Redis is away or does not take writes; try again")
    return None


def _invalid(error: RequestValidationError) -> JobstreamError:
    """FastAPI's validation errors: they concern parameters only, bodies are validated by the task's schema."""
    errors = [FieldError(pointer=json_pointer(item["loc"][1:]), detail=str(item["msg"])) for item in error.errors()]
    names = ", ".join(str(item["loc"][-1]) for item in error.errors())
    return InvalidParameter(f"Not understood: {names}", errors=errors)
