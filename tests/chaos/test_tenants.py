"""Workers are killed and deployed while tenants take turns: nothing is lost, and no seat stays taken for ever."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
import redis as sync_redis

from jobstream import keys
from jobstream.embedded import ChildRedis
from jobstream.job import JobStatus
from jobstream.limits import TenantLimits, set_limits
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import UrlSource
from tests.chaos.fleet import Fleet, ready, until
from tests.chaos.ledger import Ledger

OWNERS = ("a", "b", "c", None)
KILLS = 8


@pytest.mark.timeout(180)
async def test_tenants_get_their_turns_whoever_dies(
    real_source: UrlSource, redis_server: ChildRedis, tmp_path: Path, chaos_seed: int
) -> None:
    rng, where = random.Random(chaos_seed), tmp_path / "notes"
    client = real_source.client()
    queue = Queue(client)
    fleet = Fleet(
        tmp_path,
        redis_server.url,
        JOBSTREAM_LEASE_SECONDS="1",
        JOBSTREAM_MAX_CRASHES="100",
        JOBSTREAM_MAX_JOBS="5",
        JOBSTREAM_TENANT_RUNNING="7",
    )
    try:
        await set_limits(client, "b", TenantLimits(weight=3))
        workers = [await asyncio.to_thread(fleet.start_worker) for _ in range(3)]
        await ready(client, *workers)
        accepted: list[str] = []
        for step in range(KILLS):
            for owner in OWNERS:
                count = 60 if owner == "a" and step == 0 else rng.randrange(1, 12)
                options = SubmitOptions(priority=rng.choice([0, 0, 4]), delay=rng.choice([0, 0, 0.3]))
                data = {"where": str(where), "seconds": rng.uniform(0, 0.4)}
                accepted += await queue.submit_many(
                    [Submission("coroutine", data, options, owner=owner) for _ in range(count)]
                )
            await queue.cancel(rng.choice(accepted))
            await asyncio.sleep(rng.uniform(0.05, 0.6))
            victim = rng.randrange(len(workers))
            fatal = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            await asyncio.to_thread(workers[victim].signal, fatal)
            workers[victim] = await asyncio.to_thread(fleet.start_worker)

        async def all_ended() -> bool:
            return int(await client.zcard(keys.queue("default"))) == 0

        await until(all_ended, f"jobs are left, seed {chaos_seed}\n{fleet.log_tails()}", seconds=90)
        for prefix in (keys.SEATS, keys.ROOM, keys.RUNNING):
            assert await client.keys(prefix + "*") == []
        with sync_redis.Redis.from_url(redis_server.url) as blocking:
            ledger = Ledger(blocking, where)
            accounts = {job_id: ledger.account(job_id) for job_id in accepted}
        faults = [f"{fault}: {account}" for account in accounts.values() for fault in account.faults()]
        assert not faults, f"seed {chaos_seed}: {faults[:10]}"
        ends = {account.status for account in accounts.values()}
        assert ends <= {JobStatus.SUCCEEDED, JobStatus.CANCELLED}, f"seed {chaos_seed}: {ends}"
    finally:
        await asyncio.to_thread(fleet.close)
        await client.aclose()
