"""The router with all resources, for anybody's FastAPI app, and our own app around it."""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from jobstream.redis import RedisSource, UrlSource
from jobstream.version import VERSION
from jobstream_api import problems
from jobstream_api.auth.gate import PUBLIC, Authenticate, Gate
from jobstream_api.auth.redact import redact_access_log
from jobstream_api.edges import EXPOSED, Edges, allow_own_scripts
from jobstream_api.failures import FAILURE
from jobstream_api.jobs import STATE
from jobstream_api.openapi import OpenApi
from jobstream_api.problems import problem_route
from jobstream_api.routes import (
    batch_resource,
    batches,
    bulk,
    events,
    files,
    health,
    jobs,
    metrics,
    problem_pages,
    results,
    schedules,
    static,
    tasks,
    tickets,
    webhooks,
)
from jobstream_api.service import Service
from jobstream_api.settings import ApiSettings
from jobstream_api.wire import accepts_html

DESCRIPTION = """Hand work over, keep the ticket, watch it live.

`POST /{task}` answers 202 with a `Location` to poll (202 until there is a result, then 200), and a monitor at
`/jobs/{id}` with an event stream at `/jobs/{id}/events`. Errors are `application/problem+json`.
"""


def create_router(service: Service | None = None, *, authenticate: Authenticate | None = None) -> APIRouter:
    """All resources of the wire contract, for `app.include_router(create_router(), prefix="/background")`.

    Its lifespan, which FastAPI runs with the app's, runs the service. `service`: one that was made by hand; without it
    the environment says which (`ApiSettings`). `authenticate`: says who is asking, for an app that knows its users;
    without it the settings do. Raises ConfigurationError when no Redis is configured.
    """
    if service is None:
        settings = ApiSettings()
        service = Service(settings, UrlSource.from_settings(settings))
    return _router(service, authenticate)


def _router(service: Service, authenticate: Authenticate | None) -> APIRouter:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.place(_public_path(app, service))
        setattr(app.state, STATE, service)
        async with service.running():
            yield

    service.authenticate = authenticate
    gate = Gate(authenticate, service.tickets) if authenticate else service.gate
    router = APIRouter(
        route_class=problem_route(lambda: service.prefix), lifespan=lifespan, dependencies=[Depends(gate)]
    )
    # FastAPI asks the routes one after the other, twice: those first that are asked for most. Whose names are those of
    # tasks match none that the service keeps for itself.
    for resource in (
        results,
        jobs,
        events,
        health,
        metrics,
        static,
        tasks,
        batches,
        batch_resource,
        bulk,
        files,
        tickets,
        webhooks,
        schedules,
        problem_pages,
    ):
        resource.add_routes(router, service)
    problems.name_allowed_methods(router)
    return router


def create_app(settings: ApiSettings | None = None, source: RedisSource | None = None) -> FastAPI:
    """The service as an ASGI app. Raises ConfigurationError when no Redis is configured."""
    settings = settings or ApiSettings()
    service = Service(settings, source or UrlSource.from_settings(settings))
    app = FastAPI(
        root_path=service.root_path,
        title="jobstream",
        version=VERSION,
        description=DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "exclude": _is_a_check},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    app.router.route_class = problem_route(lambda: service.prefix)
    problems.install(app, lambda: service.prefix)
    redact_access_log()
    _add_docs(app, service)
    app.include_router(create_router(service), responses=FAILURE)
    problems.name_allowed_methods(app.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    app.add_middleware(Edges, meter=service.meter)
    return app


def _is_a_check(scope: MutableMapping[str, Any]) -> bool:
    """What a cluster asks every few seconds, and is no request of anybody."""
    return str(scope.get("path", "")).endswith(("/livez", "/readyz", "/metrics"))


def _public_path(app: FastAPI, service: Service) -> str:
    """What clients see in front of the router's own paths: the proxy's part and that of `include_router(prefix=…)`."""
    return (app.root_path or service.root_path).rstrip("/") + app.url_path_for(problem_pages.CATALOGUE).removesuffix(
        "/problems"
    )


def _add_docs(app: FastAPI, service: Service) -> None:
    """`/`, `/openapi.json`, and the documentation pages with their scripts from this machine: they work offline."""
    document = OpenApi(app, service)
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    static = Path(str(importlib.resources.files("fastapi_offline"))) / "static"
    app.mount("/static/docs", StaticFiles(directory=static), name="docs-static")

    @app.get("/", include_in_schema=False, dependencies=[PUBLIC])
    async def root(request: Request) -> Response:
        if accepts_html(request):
            return RedirectResponse(f"{service.prefix}/docs", status_code=303, headers={"Vary": "Accept"})
        links = {name: f"{service.prefix}/{name}" for name in ("tasks", "jobs", "docs", "problems")}
        links["openapi"] = f"{service.prefix}/openapi.json"
        return JSONResponse({"service": "jobstream", "version": VERSION, "links": links}, headers={"Vary": "Accept"})

    @app.get("/favicon.ico", include_in_schema=False, dependencies=[PUBLIC])
    async def favicon() -> Response:
        """Browsers ask for it, whatever they show."""
        return FileResponse(static / "favicon.png", headers={"Cache-Control": "max-age=86400"})

    @app.get("/openapi.json", include_in_schema=False, dependencies=[PUBLIC])
    async def openapi(request: Request) -> JSONResponse:
        """What tasks there are, `GET /tasks` tells to known callers only; so does this. The rest is no secret."""
        known = service.gate.open or await service.gate.caller(request) is not None
        with contextlib.suppress(Exception):  # Redis is away: the document is what was known
            await service.tasks.refresh()
        return JSONResponse(document(with_tasks=known), headers={"Vary": "Authorization, X-API-Key"})

    @app.get("/docs", include_in_schema=False, dependencies=[PUBLIC])
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=f"{service.prefix}/openapi.json",
            title="jobstream",
            swagger_js_url=f"{service.prefix}/static/docs/swagger-ui-bundle.js",
            swagger_css_url=f"{service.prefix}/static/docs/swagger-ui.css",
            swagger_favicon_url=f"{service.prefix}/static/docs/favicon.png",
        )
        return allow_own_scripts(page)

    @app.get("/redoc", include_in_schema=False, dependencies=[PUBLIC])
    async def redoc() -> HTMLResponse:
        page = get_redoc_html(
            openapi_url=f"{service.prefix}/openapi.json",
            title="jobstream",
            redoc_js_url=f"{service.prefix}/static/docs/redoc.standalone.js",
            redoc_favicon_url=f"{service.prefix}/static/docs/favicon.png",
            with_google_fonts=False,
        )
        return allow_own_scripts(page)
