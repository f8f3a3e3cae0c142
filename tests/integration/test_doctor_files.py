"""The doctor looks for the files of jobs where this machine keeps them."""

from __future__ import annotations

from pathlib import Path

from arq.connections import ArqRedis

from jobstream.files import FileSettings, FileStore
from jobstream.queue import Queue
from jobstream_cli.doctor import storage


async def uploaded(client: ArqRedis, store: FileStore, job_id: str) -> None:
    async with store.create(job_id, 1, name="a", content_type=None) as writer:
        await writer.write(b"x")
    await Queue(client).submit_once("files", {}, job_id=job_id, files=[writer.file.model_dump()])


async def test_a_machine_that_does_not_share_the_directory_is_told(client: ArqRedis, tmp_path: Path) -> None:
    here, elsewhere = (FileSettings(files_dir=tmp_path / name) for name in ("here", "elsewhere"))
    (found,) = await storage.examine(client, here)
    assert (found.level, "no recent job" in found.detail) == ("ok", True)
    await Queue(client).submit("words", {})
    for job_id in ("j1", "j2"):
        await uploaded(client, FileStore.at(here.files_place), job_id)
    (found,) = await storage.examine(client, here)
    assert (found.level, "2 uploads" in found.detail) == ("ok", True)
    (found,) = await storage.examine(client, elsewhere)
    assert found.level == "error"
    assert "2 of 2" in found.detail
    assert "share" in (found.advice or "")
    assert not (tmp_path / "elsewhere").exists()


async def test_a_bucket_that_does_not_answer_is_told(client: ArqRedis) -> None:
    for url, level in (("s3://nowhere", "warning"), ("gs://x", "error")):
        settings = FileSettings(files_url=url, files_endpoint="http://127.0.0.1:9", files_region="us-east-1")
        (found,) = await storage.examine(client, settings)
        assert found.level == level
