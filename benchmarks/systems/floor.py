"""The floor: a program that makes only the Redis calls that no job queue of this kind can do without.

A job has a record (hash), waits in a list, is claimed with a lease, and says by pub/sub that it began and that it
ended. Finishes and claims of a turn travel in one script; nothing is validated, limited, retried, indexed or logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import uuid
from collections.abc import Callable
from typing import Any, Self

import hiredis

from benchmarks.marks import MARKS
from benchmarks.system import System

_SUBMIT = """
redis.call('HSET', 'floor:job:' .. ARGV[1], 'status', 'queued', 'payload', ARGV[2])
redis.call('RPUSH', 'floor:queue', ARGV[1])
redis.call('PUBLISH', 'floor:wake', ARGV[1])
"""

_STEP = """
-- ARGV  1 how many jobs to claim   2 now (ms)   3… id, result, id, result, … of the jobs that ended
for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  if redis.call('ZREM', 'floor:leases', id) == 1 then
    redis.call('HSET', 'floor:job:' .. id, 'status', 'succeeded', 'result', ARGV[at + 1], 'finished_at', ARGV[2])
    redis.call('PEXPIRE', 'floor:job:' .. id, 86400000)
    redis.call('PUBLISH', 'floor:events:' .. id, 'done')
  end
end
local claimed = {}
if tonumber(ARGV[1]) > 0 then
  for _, id in ipairs(redis.call('LPOP', 'floor:queue', ARGV[1]) or {}) do
    redis.call('ZADD', 'floor:leases', ARGV[2] + 10000, id)
    redis.call('HSET', 'floor:job:' .. id, 'status', 'running', 'started_at', ARGV[2])
    redis.call('PUBLISH', 'floor:events:' .. id, 'running')
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = redis.call('HGET', 'floor:job:' .. id, 'payload')
  end
end
return claimed
"""

_NOTHING_YET = object()


class Link(asyncio.Protocol):
    """A connection: what is sent in a turn of the loop travels together, replies come in order."""

    def __init__(self, on_message: Callable[[], None]) -> None:
        self._on_message = on_message
        self._reader = hiredis.Reader(notEnoughData=_NOTHING_YET)
        self._waiting: list[asyncio.Future[Any]] = []
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport = asyncio.Transport()  # until there is a connection

    @classmethod
    async def open(cls, path: str, on_message: Callable[[], None] = lambda: None) -> Self:
        """Connect. `on_message` is called for each message of a subscription."""
        loop = asyncio.get_running_loop()
        transport, link = await loop.create_unix_connection(lambda: cls(on_message), path)
        link._transport = transport
        return link

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; await what is returned for its reply."""
        answer = self._loop.create_future()
        self._waiting.append(answer)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(hiredis.pack_command(command))
        return answer

    async def load(self, text: str) -> Callable[..., asyncio.Future[Any]]:
        """A script, to be called with its arguments."""
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        await self.call("SCRIPT", "LOAD", text)
        return lambda *arguments: self.call("EVALSHA", sha, 0, *arguments)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """asyncio: replies have come."""
        self._reader.feed(data)
        answered = 0
        while (reply := self._reader.gets()) is not _NOTHING_YET:
            if isinstance(reply, list) and reply and reply[0] == b"message":
                self._on_message()
            elif isinstance(reply, Exception):
                self._waiting[answered].set_exception(reply)
                answered += 1
            else:
                self._waiting[answered].set_result(reply)
                answered += 1
        del self._waiting[:answered]


class Lane:
    """Half of a worker's slots: while one half is at Redis, the jobs of the other run."""

    def __init__(self, slots: int, step: Callable[..., asyncio.Future[Any]]) -> None:
        self._slots = slots
        self._step = step
        self._ended: list[str | bytes] = []
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Finish and claim, for ever."""
        loop = asyncio.get_running_loop()
        free = self._slots
        while True:
            self.wake.clear()
            ended, self._ended = self._ended, []
            free += len(ended) // 2
            now_ms = round(loop.time() * 1000)
            claimed = await self._step(free, now_ms, *ended)
            free -= len(claimed) // 2
            for at in range(0, len(claimed), 2):
                asyncio.create_task(self._job(claimed[at], claimed[at + 1]))  # noqa: RUF006 (ends in this turn)
            await self.wake.wait()

    async def _job(self, job_id: bytes, payload: bytes) -> None:
        sent_ns = json.loads(payload)
        if sent_ns is None:
            MARKS.noop()
        else:
            MARKS.stamp(sent_ns)
        self._ended += (job_id, "null")
        self.wake.set()


class Floor(System):
    """See the module."""

    def run_worker(self, slots: int) -> None:
        asyncio.run(self._work(slots))

    async def _work(self, slots: int) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        step = await (await Link.open(self.socket)).load(_STEP)
        lanes = [Lane(size, step) for size in (slots - slots // 2, slots // 2) if size]

        def wake() -> None:
            for lane in lanes:
                lane.wake.set()

        bell = await Link.open(self.socket, wake)
        await bell.call("SUBSCRIBE", "floor:wake")
        running = [asyncio.create_task(lane.run()) for lane in lanes]
        await stop.wait()
        for task in running:
            task.cancel()

    async def open(self) -> None:
        self._link = await Link.open(self.socket)
        self._submit = await self._link.load(_SUBMIT)
        self._messages = asyncio.Semaphore(0)
        self._bell = await Link.open(self.socket, self._messages.release)

    async def enqueue(self) -> None:
        await self._submit(uuid.uuid4().hex, "null")

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._submit(uuid.uuid4().hex, str(sent_ns))

    async def result(self, sent_ns: int) -> None:
        job_id = uuid.uuid4().hex
        await self._bell.call("SUBSCRIBE", f"floor:events:{job_id}")
        await self._submit(job_id, str(sent_ns))
        for _ in ("running", "done"):
            await self._messages.acquire()
        await self._link.call("HGETALL", f"floor:job:{job_id}")
        await self._bell.call("UNSUBSCRIBE", f"floor:events:{job_id}")

    async def left(self) -> int:
        queued, leased = await asyncio.gather(
            self._link.call("LLEN", "floor:queue"), self._link.call("ZCARD", "floor:leases")
        )
        return int(queued) + int(leased)
