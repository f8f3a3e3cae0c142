"""The list and the search among very many records: `python -m benchmarks.lists`.

Fills a Redis of its own by `Queue.submit_many`, then asks for pages of 50 by the script that `GET /jobs` uses. The
floor is what any list of 50 records needs: a ZREVRANGE, and 50 HGETALL in one pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.machine import describe
from jobstream import keys
from jobstream.embedded import ChildRedis, find_server
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import UrlSource
from jobstream.store import JobFilter, cursor_at, read_records

BATCH = 2_500
PAGE = 50
SAMPLES = 200
TENANTS = 100
RARE = 10_000
"""One job in so many has the rare word, the rare tag, and is cancelled."""

Ask = Callable[[], Awaitable[int]]


def submissions(start: int, count: int) -> list[Submission]:
    """Jobs as a shop has them: 8 words each, two tags, a hundred tenants, two tasks."""
    return [
        Submission(
            "invoice" if number % 50 else "refund",
            {
                "order": number,
                "customer": f"customer{number % 5000}",
                "note": "please send it soon" + (" sesquipedalian" if number % RARE == 0 else ""),
            },
            SubmitOptions(tags=[f"day{number % 30}", "rare" if number % RARE == 0 else "shop"]),
            owner=f"tenant{number % TENANTS}",
        )
        for number in range(start, start + count)
    ]


async def fill(queue: Queue, records: int) -> None:
    """Store them; every `RARE`th is cancelled."""
    for start in range(0, records, BATCH):
        ids = await queue.submit_many(submissions(start, min(BATCH, records - start)))
        for place, job_id in enumerate(ids):
            if (start + place) % RARE == 0:
                await queue.cancel(job_id)


async def memory(client: Redis, records: int, *, words: int) -> float:
    """Bytes per record. `words`: how many of its input each is found by."""
    await client.flushall()
    empty = (await client.info("memory"))["used_memory"]
    await fill(Queue(client, words=words), records)
    used = (await client.info("memory"))["used_memory"]
    return float(used - empty) / records


async def measure(name: str, ask: Ask) -> str:
    """One line of the table."""
    found, times = 0, []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        found = await ask()
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return f"{name:44}{found:5} {times[len(times) // 2]:9.2f} {times[int(len(times) * 0.99) - 1]:9.2f} {times[-1]:9.2f}"


async def run(records: int, sample: int) -> None:
    """Fill, ask, print."""
    program = find_server()
    assert program is not None, "install redis-server"
    with tempfile.TemporaryDirectory() as directory, ChildRedis(program, Path(directory)) as server:
        client = UrlSource(server.url, kind="child", timeout=30).client()
        try:
            await client.config_set("maxmemory", 0)
            print("\n".join(describe()), flush=True)
            for words in (16, 0):
                print(f"memory per record, {sample:,} records, {words} words kept at most: ", end="", flush=True)
                print(f"{await memory(client, sample, words=words):,.0f} bytes", flush=True)
            began = time.perf_counter()
            await client.flushall()
            queue = Queue(client)
            await fill(queue, records)
            print(f"{records:,} records in {time.perf_counter() - began:.0f} s\n", flush=True)
            print(f"{'pages of 50':44}{'jobs':>5} {'p50 ms':>9} {'p99 ms':>9} {'most ms':>9}", flush=True)
            for name, ask in await questions(client, queue, records):
                print(await measure(name, ask), flush=True)
        finally:
            await client.aclose()


async def questions(client: Redis, queue: Queue, records: int) -> list[tuple[str, Ask]]:
    """What is asked, and how."""
    middle = records // 2
    (deep_id,) = await client.zrevrange(keys.INDEX, middle, middle)
    job = await queue.get(deep_id.decode())
    cursor = cursor_at(job)

    def page(wanted: JobFilter, cursor: str | None = None) -> Ask:
        async def ask() -> int:
            jobs, _ = await queue.list(wanted, limit=PAGE, cursor=cursor)
            return len(jobs)

        return ask

    async def floor() -> int:
        ids = await client.zrevrange(keys.INDEX, 0, PAGE - 1)
        return len(await read_records(client, [each.decode() for each in ids]))

    return [
        ("floor: ZREVRANGE, then 50 HGETALL", floor),
        ("newest", page(JobFilter())),
        ("status, of nearly all", page(JobFilter(status="queued"))),
        ("status, of 1 in 10,000", page(JobFilter(status="cancelled"))),
        ("task, of 1 in 50", page(JobFilter(task="refund"))),
        ("tag, of 1 in 30", page(JobFilter(tag="day7"))),
        ("a rare word: 1 in 10,000", page(JobFilter(words=("sesquipedalian",)))),
        ("a common word: all", page(JobFilter(words=("please",)))),
        ("a rare and a common word", page(JobFilter(words=("sesquipedalian", "please")))),
        ("behind a cursor in the middle", page(JobFilter(), cursor)),
        ("owner, of 1 in 100", page(JobFilter(owner="tenant7"))),
        ("owner and a status of nearly all", page(JobFilter(owner="tenant7", status="queued"))),
        ("owner and a status of 1 in 100 of its jobs", page(JobFilter(owner="tenant0", status="cancelled"))),
        ("owner and a status that none of its jobs has", page(JobFilter(owner="tenant7", status="failed"))),
        ("owner and a task of all of its jobs", page(JobFilter(owner="tenant0", task="refund"))),
        ("owner and a rare word", page(JobFilter(owner="tenant0", words=("sesquipedalian",)))),
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=50_000, help="records by which memory is measured")
    options = parser.parse_args()
    asyncio.run(run(options.records, options.sample))


if __name__ == "__main__":
    main()
