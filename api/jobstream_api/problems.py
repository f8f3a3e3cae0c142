"""Errors on the wire: every response that is not a success is problem+json (RFC 9457), and no stack trace leaves."""

from __future__ import annotations

import contextlib
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
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from jobstream.errors import (
    Draining,
    FieldError,
    Forbidden,
    IdempotencyInFlight,
    IdentityUnavailable,
    InvalidParameter,
    JobstreamError,
    MalformedBody,
    MethodNotAllowed,
    OverQuota,
    PathNotFound,
    QueueFull,
    RangeNotSatisfiable,
    RedisUnavailable,
    StorageUnavailable,
    Unauthorized,
)
from jobstream.problem import placed, problem
from jobstream.redis import is_unavailable
from jobstream.task import json_pointer

logger = logging.getLogger("jobstream.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS: dict[type[JobstreamError], int] = {
    StorageUnavailable: 5,
    RedisUnavailable: 2,  # a restart of Redis, or the promotion of a replica
    Draining: 1,  # another process answers already
    IdempotencyInFlight: 1,
    IdentityUnavailable: 10,  # before that its keys are not asked for again
}
"""What errors that pass ask clients to wait."""


def problem_response(
    members: dict[str, Any], *, instance: str, prefix: str = "", headers: dict[str, str] | None = None
) -> Response:
    """A response of a problem object; its `status` is the response's. `prefix`: where the service's paths begin."""
    return Response(
        msgspec.json.encode(placed(members, prefix) | {"instance": instance}),
        status_code=members["status"],
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def respond(error: Exception, request: Request, prefix: str = "") -> Response:
    """The response to any error."""
    members, headers = described(error, request)
    return problem_response(members, instance=request.url.path, prefix=prefix, headers=headers)


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
    if isinstance(error, OverQuota):
        return {"Retry-After": str(error.retry_after), **error.quota.headers()}
    if isinstance(error, QueueFull):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, RangeNotSatisfiable):  # RFC 9110, section 14.4
        return {"Content-Range": f"bytes */{error.size}"}
    retry_after = RETRY_AFTER_SECONDS.get(type(error))
    return {"Retry-After": str(retry_after)} if retry_after else {}


class ProblemRoute(APIRoute):
    """A route that answers its own errors, so that a router in somebody else's app does not depend on the app's."""

    prefix: Callable[[], str] = staticmethod(lambda: "")
    allowed: frozenset[str] = frozenset()
    """The methods of all routes of this path; see `name_allowed_methods`."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """What has GET has HEAD."""
        match, child_scope = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL and self._is_head(scope) else match), child_scope

    def _is_head(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in (self.methods or ())

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's own 405 would name only the methods of this one route."""
        if self._is_head(scope):
            # Without extensions: an event stream would write around the `send` that it is given.
            asked = {**scope, "method": "GET", "extensions": {}}
            with contextlib.suppress(ClientDisconnect, OSError):
                await super().handle(asked, receive, _head_only(send))
            return
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        refusal = HTTPException(405, headers={"Allow": ", ".join(sorted(self.allowed))})
        await respond_http(refusal, Request(scope), self.prefix())(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                return respond_http(error, request, self.prefix())
            except Exception as error:
                return respond(error, request, self.prefix())

        return answer


def _head_only(send: Send) -> Send:
    """Send the head of an answer, and end it there: also that of a stream, which has no end of its own."""
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})
            ended = True
        elif ended and message.get("more_body"):
            raise OSError("the answer to a HEAD has no body")  # to Starlette this is a client that has gone

    return send_head


def problem_route(prefix: Callable[[], str]) -> type[ProblemRoute]:
    """The route class of a router whose paths begin with what `prefix` says when a request is answered."""
    return type("PlacedProblemRoute", (ProblemRoute,), {"prefix": staticmethod(prefix)})


_BY_STATUS: dict[int, type[JobstreamError]] = {404: PathNotFound, 405: MethodNotAllowed}


def respond_http(error: HTTPException, request: Request, prefix: str = "") -> Response:
    """The framework's own errors (404 for no route, 405, …) as problems, with their headers."""
    phrase = HTTPStatus(error.status_code).phrase
    detail = str(error.detail or "")
    if error.status_code in _BY_STATUS:
        members = problem(_BY_STATUS[error.status_code]("" if detail == phrase else detail))
    else:
        code = phrase.lower().replace(" ", "-")
        members = {"type": "about:blank", "title": phrase, "status": error.status_code, "detail": detail, "code": code}
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers.setdefault("Allow", "GET, HEAD")  # static files: Starlette names none
    return problem_response(members, instance=request.url.path, prefix=prefix, headers=headers)


def name_allowed_methods(router: APIRouter) -> None:
    """Tell each route what the others of its path allow (RFC 9110, section 10.2.1). Call it after the last route."""
    methods: defaultdict[str, set[str]] = defaultdict(set)
    routes = [route for route in router.routes if isinstance(route, ProblemRoute)]
    for route in routes:
        methods[route.path].update(route.methods or ())
        if "GET" in methods[route.path]:
            methods[route.path].add("HEAD")
    for route in routes:
        route.allowed = frozenset(methods[route.path])


def install(app: FastAPI, prefix: Callable[[], str]) -> None:
    """Answer what no route of ours answers: unknown paths, wrong methods, errors of the middle."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond_http(error, request, prefix())

    async def other(request: Request, error: Exception) -> Response:
        return respond(error, request, prefix())

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
