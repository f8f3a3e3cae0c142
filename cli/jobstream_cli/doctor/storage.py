"""Whether the files of jobs are where this machine looks for them: with several machines they may not be."""

from __future__ import annotations

import asyncio

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import ConfigurationError, FileMissing, JobstreamError
from jobstream.files import FileSettings, FileStore, JobFile, files_in
from jobstream_cli.doctor.findings import Finding, error, ok, warning

JOBS_SEEN = 500
"""How many of the latest jobs are asked for files."""
FILES_SEEN = 20

NO_FILE = JobFile(name="", size=0, sha256="", key="doctor/1")
"""Who says that it is not there can be reached."""

SHARE = (
    "Let API and workers on all machines share one directory (JOBSTREAM_FILES_DIR), or keep files in a bucket "
    "(JOBSTREAM_FILES_URL). Run the doctor with the settings of each of them."
)


async def examine(client: Redis, settings: FileSettings) -> list[Finding]:
    """Look for the uploads of the latest jobs that have some. Nothing is written."""
    try:
        store = FileStore.at(settings.files_place)
    except ConfigurationError as wrong:
        return [error("files", wrong.detail, "See JOBSTREAM_FILES_URL.")]
    ids: list[bytes] = await client.zrevrange(keys.INDEX, 0, JOBS_SEEN - 1)
    async with client.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hget(keys.record(job_id.decode()), "files")
        recorded: list[bytes | None] = await pipe.execute()
    files = [
        file
        for job_id, text in zip(ids, recorded, strict=True)
        if text
        for file in files_in(msgspec.json.decode(text), job_id.decode())
    ][:FILES_SEEN]
    missing, refusal = 0, ""
    for file in files:
        try:
            (await asyncio.to_thread(store.open, file)).close()
        except JobstreamError as wrong:
            missing, refusal = missing + 1, wrong.detail
    place = store.storage.place
    if missing:
        return [error("files", f"{missing} of {len(files)} uploads cannot be read in {place}: {refusal}", SHARE)]
    if files:
        return [ok("files", f"{place}: the latest {len(files)} uploads are there")]
    try:
        await asyncio.to_thread(store.open, NO_FILE)
    except FileMissing:
        pass
    except JobstreamError as wrong:
        return [warning("files", f"{place}: {wrong.detail}", "See JOBSTREAM_FILES_URL and the credentials for it.")]
    return [ok("files", f"{place}: no recent job has uploads")]
