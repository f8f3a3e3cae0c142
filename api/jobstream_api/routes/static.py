"""`/static/…`: the module, the element and the page's scripts, as they are in this package."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobstream_api.auth.gate import PUBLIC
from jobstream_api.service import Service

MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def add_routes(router: APIRouter, service: Service) -> None:
    """The files for browsers. They are asked for again with each page, and mostly answered with 304."""
    files = _files()

    @router.api_route("/static/{name}", methods=["GET", "HEAD"], include_in_schema=False, dependencies=[PUBLIC])
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        media_type, content, tag = files[name]
        # A module imports its neighbours by relative URLs, without a version: all must be of one release.
        headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        asked = request.headers.get("if-none-match", "")
        if asked == "*" or tag in (known.strip().removeprefix("W/") for known in asked.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)


def _files() -> dict[str, tuple[str, bytes, str]]:
    """Media type, content and ETag of each file by name."""
    found = {}
    for file in resources.files("jobstream_api.web").iterdir():
        media_type = MEDIA_TYPES.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = (media_type, content, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return found
