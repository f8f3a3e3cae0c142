"""The rig: a Redis, workers, an API and a load, put through trouble, and then the books."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx2

from jobstream.embedded import ServerProgram
from jobstream.redis import UrlSource
from tests.chaos.fleet import Fleet, Member, ready, until
from tests.chaos.ledger import Account, Ledger, notes
from tests.chaos.load import Kind, Load
from tests.chaos.mortal_redis import MortalRedis


class Rig:
    """Starts it all; `close` ends it all."""

    def __init__(self, program: ServerProgram, directory: Path, *, redis_url: str | None = None) -> None:
        self.redis = MortalRedis(program, directory)
        self.fleet = Fleet(
            directory,
            redis_url or self.redis.url,
            shutdown_seconds="0",
            heartbeat_seconds="0.5",
            kill_seconds="0.5",
            processes="2",
            max_jobs="20",
        )
        self.notes = directory / "notes"
        self.workers: list[Member] = []
        self._api: Member | None = None

    @property
    def api(self) -> Member:
        """The API process."""
        assert self._api is not None
        return self._api

    async def start(self, *, workers: int) -> None:
        """Return when the workers have announced themselves and the API knows their tasks."""
        await asyncio.to_thread(self.redis.start)
        self.workers = [self.fleet.start_worker() for _ in range(workers)]
        self.start_api()
        client = UrlSource(self.redis.url).client()
        try:
            await ready(client, *self.workers)
        finally:
            await client.aclose()
        async with httpx2.AsyncClient(base_url=self.fleet.url) as http:

            async def known() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await http.get("/tasks/talking")).is_success
                return False

            await until(known, "the API does not know the tasks")

    def start_api(self) -> None:
        """The API, or another one when the one before has ended."""
        self._api = self.fleet.start_api()

    def load(self) -> Load:
        """Clients of the API."""
        return Load(self.fleet.url, self.notes)

    async def balanced(self, accepted: Mapping[str, Kind], *, seconds: float = 40) -> dict[str, Account]:
        """Wait until all work has ended; check the books. The accounts of the accepted jobs."""
        with self.redis.client() as client:
            ledger = Ledger(client, self.notes)

            async def ended() -> bool:
                return not ledger.unfinished()

            try:
                await until(ended, "not all jobs have ended", seconds=seconds)
            except AssertionError:
                stories = "\n".join(str(ledger.account(job_id)) for job_id in ledger.unfinished()[:5])
                raise AssertionError(f"unfinished after {seconds:g} s:\n{stories}") from None
            accounts = ledger.check(accepted)
        return {job_id: accounts[job_id] for job_id in accepted}

    def runs(self) -> Counter[str]:
        """How often each job's function has begun."""
        runs: Counter[str] = Counter()
        for run, times in notes(self.notes).items():
            runs[run.job_id] += times
        return runs

    def close(self) -> None:
        """End all processes."""
        self.fleet.close()
        self.redis.stop()
