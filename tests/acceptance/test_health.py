"""Health: `/livez` and `/readyz`."""

from __future__ import annotations

import httpx2

from tests.acceptance.service import Service


async def test_the_process_lives(http: httpx2.AsyncClient) -> None:
    response = await http.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_process_is_ready(http: httpx2.AsyncClient) -> None:
    response = await http.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_verbose_readiness_says_what_it_leans_on(http: httpx2.AsyncClient, service: Service) -> None:
    response = await http.get("/readyz?verbose")
    ready = response.json()
    assert response.status_code == 200
    assert ready["redis"]["kind"] == ("fake" if service.redis_url is None else "external")
    assert ready["redis"]["durability"]
    assert ready["workers"] == 1
    assert ready["tasks"] >= 15
    assert ready["watchers"] == 0
