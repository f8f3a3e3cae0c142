"""An S3 server of the tests' own: moto, in a process, on a port."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from jobstream.guard import start_guarded
from jobstream.storage import Place

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
PATIENCE = 60.0


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[str]:
    """The server's URL, with credentials in the environment, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, (directory / "s3.log").open("wb") as log:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = start_guarded(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(url):
                assert server.poll() is None, (directory / "s3.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield url
        finally:
            server.stop(timeout=10)


def make_bucket(url: str, name: str) -> Place:
    """A new bucket."""
    httpx2.put(f"{url}/{name}").raise_for_status()
    return Place(url=f"s3://{name}/jobs", endpoint=url, region="us-east-1")


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/moto-api/").status_code < 500
    return False
