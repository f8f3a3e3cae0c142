"""The edges of our own app: request ids, an access log, headers that every answer has. Plain ASGI, streams included."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobstream.traces import current, trace_id
from jobstream_api.meter import Meter

logger = logging.getLogger("jobstream.access")

REQUEST_ID = "X-Request-Id"
_SANE = re.compile(r"[\w.:/+=@-]{1,128}\Z", re.ASCII)

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that is being answered: the client's own, or one that was made here."""

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""On every answer. A browser is to take nothing for HTML that is none, to tell nobody the ids in our URLs, and to show
no page of ours inside another one's."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of HTML, unless the page brings its own."""


EXPOSED = (
    "Content-Location ETag Idempotent-Replayed Link Location Operation-Location Preference-Applied RateLimit "
    "RateLimit-Policy Retry-After X-Request-Id"
).split()
"""Headers that scripts of other origins may read, where CORS lets them in."""


class Edges:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        identity = given if _SANE.match(given) else secrets.token_hex(8)
        began, status, waited = time.monotonic(), 0, 0.0

        async def send_more(message: Message) -> None:
            nonlocal status, waited
            if message["type"] == "http.response.start":
                status, waited = message["status"], time.monotonic() - began
                _complete(MutableHeaders(scope=message), identity)
            await send(message)

        token = request_id.set(identity)
        try:
            await self.app(scope, receive, send_more)
        finally:
            self._meter.answered(scope, status, waited)
            milliseconds = (time.monotonic() - began) * 1000
            client = (scope.get("client") or ("-",))[0]
            path = scope["path"].encode("ascii", "backslashreplace").decode()
            logger.log(
                logging.WARNING if status >= 500 else logging.DEBUG,
                "%s %s %.200r %s in %.0f ms, request %s",
                client,
                scope["method"],
                path,
                status or "not answered",
                milliseconds,
                identity,
            )
            request_id.reset(token)


def _complete(headers: MutableHeaders, identity: str) -> None:
    headers[REQUEST_ID] = identity
    for name, value in SECURITY.items():
        headers.setdefault(name, value)
    if headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("Content-Security-Policy", PAGE_POLICY)


def allow_own_scripts(page: HTMLResponse) -> HTMLResponse:
    """Let the scripts that stand in the page itself run, and workers that they make: the documentation pages' way."""
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in scripts)
    policy = PAGE_POLICY.replace("script-src 'self'", f"script-src 'self' {hashes}".rstrip())
    page.headers["Content-Security-Policy"] = f"{policy}; worker-src 'self' blob:"
    return page


def about_request() -> dict[str, str]:
    """What the lines of a request are about."""
    identity = request_id.get()
    if identity == "-":
        return {}
    trace = trace_id(current())
    return {"request_id": identity, "trace_id": trace} if trace else {"request_id": identity}
