"""FileSweeper: files go with their job's record, and so do those that a crash has left without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from jobstream import keys
from jobstream.files import FileStore

ORPHAN_SECONDS = 3600.0
"""Files without a record are left alone for this time after they were last written to."""

BUCKET_SECONDS = 600
"""How often one of all workers looks through a bucket. A directory every worker looks through at each sweep: it may be
its own machine's."""


class FileSweeper:
    """A job's files are removed when there is neither a record of it nor somebody who says that they still arrive.

    No id is given twice, and a record is stored while the upload's claim stands: what has neither will never have one.
    """

    def __init__(self, files: FileStore, client: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._client = client
        self._clock = clock

    async def tidy(self, gone: Sequence[str]) -> list[str]:
        """Remove the files of these jobs, whose records have just expired, and of all that have no record; their ids.

        Raises StorageUnavailable, and redis-py's errors.
        """
        in_bucket = bool(self._files.storage.place.url)
        if not in_bucket:
            for job_id in gone:
                await asyncio.to_thread(self._files.remove, job_id)
        elif not await self._client.set(keys.FILES_SWEPT, "1", ex=BUCKET_SECONDS, nx=True):
            return []  # a request for each expired job, most of which have no files, would cost more than a listing
        orphans = []
        for job_id, written in (await asyncio.to_thread(self._files.owners)).items():
            if self._is_old(job_id, written, gone) and not await self._is_wanted(job_id):
                await asyncio.to_thread(self._files.remove, job_id)
                orphans.append(job_id)
        return orphans

    def _is_old(self, job_id: str, written: float, gone: Sequence[str]) -> bool:
        return job_id in gone or self._clock() - written > ORPHAN_SECONDS

    async def _is_wanted(self, job_id: str) -> bool:
        # Not the record's key itself: a write after its expiry may have left a hash of single fields.
        return bool(
            await self._client.hexists(keys.record(job_id), "status")  # type: ignore[misc]  # typed for both clients
            or await self._client.exists(keys.upload(job_id))
        )
