"""`/livez`: the process answers. `/readyz`: it can do its work: Redis answers, and it is not about to end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from jobstream.catalogue import read_workers
from jobstream.errors import Draining
from jobstream.redis import DURABILITY
from jobstream_api.auth.gate import PUBLIC
from jobstream_api.service import Service

READY_SECONDS = 1.0


class RedisHealth(BaseModel):
    """Which Redis this is, and what that means for the jobs."""

    kind: str
    durability: str


class Readiness(BaseModel):
    """The verbose answer."""

    status: str
    redis: RedisHealth
    workers: int
    tasks: int
    watchers: int


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /livez`, `GET /readyz`."""

    @router.get("/livez", tags=["health"], summary="The process answers", dependencies=[PUBLIC])
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz", tags=["health"], summary="Redis answers and the process is not draining", dependencies=[PUBLIC]
    )
    async def readyz(
        verbose: Annotated[str | None, Query(description="Give any value to be told more")] = None,
    ) -> Response:
        if service.draining:
            raise Draining("Another replica takes over")
        await service.ping(READY_SECONDS)
        if verbose is None:
            return JSONResponse({"status": "ok"})
        await service.tasks.refresh()
        kind = service.source.kind
        readiness = Readiness(
            status="ok",
            redis=RedisHealth(kind=kind, durability=DURABILITY[kind]),
            workers=len(await read_workers(service.client)),
            tasks=len(service.tasks.tasks),
            watchers=service.hub.watchers + service.tape.readers,
        )
        return JSONResponse(readiness.model_dump())
