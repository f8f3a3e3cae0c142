"""Spill: inputs and results that are too large for Redis are kept with the files; a reference stands for them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from jobstream.errors import StorageFull, StorageUnavailable
from jobstream.files import FileStore, JobFile
from jobstream.serialize import deserialize, serialize

logger = logging.getLogger("jobstream.spill")

MARK = "spilled"
"""The member of a payload that says where the rest of it is. arq looks at none that it does not know."""


@dataclass(frozen=True)
class Spill:
    """`limit`: the largest payload or result that stays in Redis, in bytes; 0: all of them."""

    files: FileStore
    limit: int

    async def payload(self, job_id: str, payload: bytes) -> bytes:
        """What to keep in Redis. Raises StorageFull and StorageUnavailable: what is not stored is not accepted."""
        if not 0 < self.limit < len(payload):
            return payload
        file = await asyncio.to_thread(self.files.spill, job_id, "input", payload)
        whole = deserialize(payload)
        left = {name: value for name, value in whole.items() if name not in ("a", "k")}
        return serialize(left | {"a": (), "k": {}, MARK: file.model_dump()})

    async def restore(self, job_id: str, reference: object) -> bytes:
        """The payload that was kept elsewhere. Raises ValueError for what is no reference, FileMissing."""
        file = JobFile.model_validate(reference)

        def read() -> bytes:
            with self.files.of(job_id).open(file) as source:
                return source.read()

        return await asyncio.to_thread(read)

    async def result(self, job_id: str, result: bytes) -> bytes:
        """What to keep in Redis of a result (JSON). When the storage does not take it, Redis does: it is done work."""
        if not 0 < self.limit < len(result):
            return result
        try:
            file = await asyncio.to_thread(self.files.spill, job_id, "result", result)
        except (StorageFull, StorageUnavailable) as error:
            logger.warning("job %s: its result, %d bytes, stays in Redis: %s", job_id, len(result), error.detail)
            return result
        return file.model_dump_json().encode()
