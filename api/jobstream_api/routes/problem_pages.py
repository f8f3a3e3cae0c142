"""`/problems` and `/problems/{code}`: what the `type` of a problem leads to, as a page or as JSON."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response

from jobstream.errors import JobstreamError, PathNotFound, wire_errors
from jobstream.problem import PROBLEMS
from jobstream_api.auth.gate import PUBLIC
from jobstream_api.service import Service
from jobstream_api.wire import accepts_html

CATALOGUE = "jobstream-problems"
"""The name of the catalogue's route: by it the router finds out under which prefix it was included."""

HEADERS = {"Vary": "Accept", "Cache-Control": "public, max-age=3600"}

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
code {{ font-family: ui-monospace, monospace }} td, th {{ text-align: left; padding: .2rem 1rem .2rem 0 }}
:root {{ color-scheme: light dark }}</style></head>
<body><main>
{body}
</main></body>
</html>
"""


class ProblemType(BaseModel):
    """A kind of problem. `status` is the usual one."""

    type: str
    title: str
    status: int
    code: str
    advice: str


class ProblemTypes(BaseModel):
    """Every kind of problem that this service may answer with."""

    problems: list[ProblemType]


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /problems`, `GET /problems/{code}`."""
    known = {error.code: error for error in wire_errors()}

    @router.get(
        "/problems",
        name=CATALOGUE,
        dependencies=[PUBLIC],
        tags=["problems"],
        summary="What can go wrong",
        response_model=ProblemTypes,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    async def catalogue(request: Request) -> Response:
        types = [_view(error, service.prefix) for error in known.values()]
        if accepts_html(request):
            return HTMLResponse(_catalogue_page(types), headers=HEADERS)
        return JSONResponse(ProblemTypes(problems=types).model_dump(), headers=HEADERS)

    @router.get(
        "/problems/{code}",
        dependencies=[PUBLIC],
        tags=["problems"],
        summary="What a problem's `code` means, and what may be done about it",
        response_model=ProblemType,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    async def one(code: str, request: Request) -> Response:
        if code not in known:
            raise PathNotFound("There is no such kind of problem")
        view = _view(known[code], service.prefix)
        if accepts_html(request):
            return HTMLResponse(_page(view, service.prefix), headers=HEADERS)
        return JSONResponse(view.model_dump(), headers=HEADERS)


def _view(error: type[JobstreamError], prefix: str) -> ProblemType:
    return ProblemType(
        type=prefix + PROBLEMS + error.code,
        title=error.title(),
        status=error.status,
        code=error.code,
        advice=error.advice(),
    )


def _page(view: ProblemType, prefix: str) -> str:
    body = (
        f"<h1>{escape(view.title)}</h1>\n<p>{escape(view.advice)}</p>\n"
        f"<p>Code <code>{escape(view.code)}</code>, status {view.status}. "
        f'<a href="{escape(prefix + PROBLEMS.rstrip("/"))}">All problems</a></p>'
    )
    return _PAGE.format(title=escape(view.title), body=body)


def _catalogue_page(types: list[ProblemType]) -> str:
    rows = "\n".join(
        f'<tr><td>{view.status}</td><td><a href="{escape(view.type)}"><code>{escape(view.code)}</code></a></td>'
        f"<td>{escape(view.title)}</td></tr>"
        for view in types
    )
    body = f"<h1>Problems</h1>\n<table><tr><th>Status</th><th>Code</th><th>Meaning</th></tr>\n{rows}\n</table>"
    return _PAGE.format(title="Problems", body=body)
