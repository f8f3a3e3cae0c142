"""Clients that hand jobs over by HTTP, whatever happens to the service meanwhile, and remember what was accepted."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2

from jobstream.job import JobStatus

ANSWER_SECONDS = 60.0
"""A call that is not answered in this time, tried again and again, fails the test."""


@dataclass(frozen=True)
class Kind:
    """A kind of job, and how it ends when nobody kills its workers."""

    task: str
    status: JobStatus = JobStatus.SUCCEEDED
    data: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    runs: int = 1
    """How often its function begins, at most; a claim whose answer was lost is an attempt without a run."""

    follows: bool = False
    """It runs after another job, of any other kind, and ends as that does."""

    @property
    def cancelled(self) -> bool:
        """Whether its client cancels it."""
        return self.status is JobStatus.CANCELLED


KINDS = (
    Kind("coroutine"),
    Kind("coroutine", data={"seconds": 4.0}),
    Kind("thread", data={"seconds": 2.0}),
    Kind("process", data={"seconds": 0.5}),
    Kind("flaky", runs=3),
    Kind("hopeless", status=JobStatus.FAILED),
    Kind("coroutine", params={"delay": "1.5"}),
    Kind("waiting", status=JobStatus.CANCELLED),
    Kind("talking", data={"seconds": 1.0}),
    Kind("parent"),
)
FOLLOWER = Kind("coroutine", follows=True)


class Load:
    """Jobs that were accepted, by id, and the calls that get them accepted."""

    def __init__(self, url: str, where: Path) -> None:
        self.accepted: dict[str, Kind] = {}
        self.after: dict[str, str] = {}
        """Followers → the jobs that they run after."""
        self._where = where
        self._http = httpx2.AsyncClient(base_url=url, timeout=5)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def end_of(self, job_id: str) -> JobStatus:
        """How a job ends when nobody kills its workers: followers as what they follow."""
        return self.accepted[self.after.get(job_id, job_id)].status

    async def submit(self, kind: Kind, *, after: str | None = None) -> str:
        """Hand a job over, under an idempotency key: until it is accepted. Its id."""
        params = kind.params | ({"after": after} if after is not None else {})
        key = f'"{secrets.token_hex(8)}"'
        data = {"where": str(self._where), **kind.data}
        response = await self._answered(f"/{kind.task}", json=data, params=params, headers={"idempotency-key": key})
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        assert job_id not in self.accepted
        self.accepted[job_id] = kind
        if after is not None:
            self.after[job_id] = after
        return job_id

    async def submit_batch(self, kinds: Sequence[Kind]) -> None:
        """The same with a batch, the last job of which runs after all others."""
        items: list[dict[str, object]] = [
            {"task": kind.task, "input": {"where": str(self._where), **kind.data}} for kind in kinds
        ]
        last = {"task": "coroutine", "input": {"where": str(self._where)}, "after": list(range(len(items)))}
        key = f'"{secrets.token_hex(8)}"'
        response = await self._answered("/jobs/batch", json=[*items, last], headers={"idempotency-key": key})
        assert response.status_code == 202, response.text
        ids = [job["id"] for job in response.json()["jobs"]]
        self.accepted |= dict(zip(ids, kinds, strict=False))

    async def cancel(self, job_id: str) -> None:
        """Cancel a job: until that is answered."""
        response = await self._answered(f"/jobs/{job_id}/cancel")
        assert response.status_code in (200, 202), response.text

    @asynccontextmanager
    async def flowing(self, rng: random.Random, *, clients: int = 3, pause: float = 0.15) -> AsyncIterator[None]:
        """While the block runs, clients submit jobs of all kinds, each after a pause of so many seconds, about; when
        it ends, they get the answers that they still wait for."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(random.Random(rng.random()), enough, pause))
            try:
                yield
            finally:
                enough.set()

    async def _client(self, rng: random.Random, enough: asyncio.Event, pause: float) -> None:
        while not enough.is_set():
            kind = rng.choice(KINDS)
            job_id = await self.submit(kind)
            await _either(enough, rng.uniform(0, 2 * pause))
            if rng.random() < 0.15:
                await self.submit(FOLLOWER, after=job_id)
            if rng.random() < 0.03:
                await self.submit_batch([Kind("coroutine"), Kind("thread"), Kind("flaky", runs=3)])
            if kind.cancelled:
                await self.cancel(job_id)

    async def _answered(self, path: str, **request: object) -> httpx2.Response:
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                try:
                    response = await self._http.post(path, **request)  # type: ignore[arg-type]
                except httpx2.TransportError:
                    pass
                else:
                    if response.status_code != 503 and "idempotency-in-flight" not in response.text:
                        return response
                await asyncio.sleep(0.1)


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
