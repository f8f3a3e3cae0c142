"""A job for which a test speaks, through the scripts that a worker uses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from redis.asyncio import Redis

from jobstream.gauge import ProgressState
from jobstream.job import JobStatus
from jobstream.outbox import Batch, Entry, EntryKind
from jobstream.queue import Queue, SubmitOptions
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter, Outcome

_numbers = itertools.count()


class SpeakingJob:
    """Submitted and claimed (versions 1 and 2); it says what it is told to say."""

    def __init__(self, job_id: str, writer: AttemptWriter) -> None:
        self.id = job_id
        self._writer = writer

    @classmethod
    async def start(cls, client: Redis, *, job_id: str | None = None, tags: Sequence[str] = ()) -> SpeakingJob:
        """On a queue of its own, so that no other job is claimed in its place."""
        queue = f"speaking-{next(_numbers)}"
        job = await Queue(client).submit("speak", {}, options=SubmitOptions(queue=queue, tags=tags), job_id=job_id)
        (claimed,), _ = await claim(client, queue=queue, worker_id="speaker", slots=1, lease=60)
        return cls(job.id, AttemptWriter(client, claimed))

    async def log(self, *messages: str) -> None:
        await self._say("log", [b'{"message":"%b"}' % message.encode() for message in messages])

    async def chunk(self, *texts: str) -> None:
        await self._say("chunk", [b'"%b"' % text.encode() for text in texts])

    async def progress(self, current: int) -> None:
        assert await self._writer.emit(Batch(ProgressState(current=current), [], 0))

    async def finish(self, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        assert await self._writer.finish(Outcome(status=status, result=b"42", arq_result=b""), keep_arq_result=0)

    async def _say(self, kind: EntryKind, said: Sequence[bytes]) -> None:
        assert await self._writer.emit(Batch(None, [Entry(kind, data) for data in said], 0))
