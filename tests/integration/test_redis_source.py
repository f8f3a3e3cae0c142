"""Connections to real servers: passwords with any character, TLS, a server that stops answering."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from jobstream.embedded import ServerProgram
from jobstream.redis import UrlSource, is_unavailable
from tests.ports import free_port

PASSWORD = "p@s:s/w#r?d%41+&= ü"


@contextlib.contextmanager
def server(program: ServerProgram, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [program.path, "--save", "", "--dir", directory, *options], stdout=subprocess.DEVNULL, cwd=directory
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def answers(source: UrlSource) -> bool:
    """True when it answers; waits for a server that is still starting. Raises what is not a matter of time."""
    client = source.client()
    deadline = time.monotonic() + 10
    try:
        while True:
            try:
                return bool(await client.ping())
            except redis.ConnectionError as error:
                if not is_unavailable(error) or "CERTIFICATE" in str(error) or time.monotonic() > deadline:
                    raise
    finally:
        await client.aclose()


@pytest.mark.parametrize("scheme", ["redis", "unix"])
async def test_a_password_with_any_character_works(server_program: ServerProgram, tmp_path: Path, scheme: str) -> None:
    path, port = tmp_path / "r.sock", free_port()
    (tmp_path / "users.acl").write_text(f"user default off\nuser team on #{_sha256(PASSWORD)} ~* &* +@all\n")
    where = {
        "redis": f"redis://team:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0",
        "unix": f"unix://team:{quote(PASSWORD, safe='')}@{path}",
    }[scheme]
    options = ["--port", str(port), "--unixsocket", str(path), "--aclfile", str(tmp_path / "users.acl")]
    with server(server_program, tmp_path, *options):
        assert await answers(UrlSource(where))
        with pytest.raises(redis.ConnectionError, match="invalid username-password") as caught:
            await answers(UrlSource(where.replace("team:", "team:x")))
        assert not is_unavailable(caught.value)


async def test_tls_checks_the_certificate_and_the_name(server_program: ServerProgram, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates for this test")
    good, evil = _certificate(tmp_path, "good", "IP:127.0.0.1"), _certificate(tmp_path, "evil", "DNS:evil.example")
    for certificate, accepted in ((good, True), (evil, False)):
        port = free_port()
        options = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
        files = ["--tls-cert-file", f"{certificate}.pem", "--tls-key-file", f"{certificate}.key"]
        url = f"rediss://127.0.0.1:{port}/0"
        with server(server_program, tmp_path, *options, *files):
            trusting = UrlSource(f"{url}?ssl_ca_certs={certificate}.pem")
            if accepted:
                assert await answers(trusting)
                with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                    await answers(UrlSource(url))
            else:
                with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                    await answers(trusting)


async def test_a_server_that_stops_answering_is_a_timeout_not_a_hang(
    server_program: ServerProgram, tmp_path: Path
) -> None:
    path = tmp_path / "r.sock"
    source = UrlSource(f"unix://{path}", timeout=0.2)
    with server(server_program, tmp_path, "--port", "0", "--unixsocket", str(path)) as process:
        assert await answers(source)
        client = source.client()
        with source.sync_client() as blocking:
            assert await client.ping()
            assert blocking.ping()
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)) as caught:
                await client.get("key")
            assert is_unavailable(caught.value)
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)) as caught:
                await asyncio.to_thread(blocking.get, "key")
            assert is_unavailable(caught.value)
            os.kill(process.pid, signal.SIGCONT)
            assert await client.get("key") is None
            assert blocking.get("key") is None
        await client.aclose()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _certificate(directory: Path, name: str, subject: str) -> Path:
    """A self-signed certificate and its key; the path without the ending."""
    path = directory / name
    what = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName={subject}"
    where = ["-keyout", f"{path}.key", "-out", f"{path}.pem"]
    subprocess.run(["openssl", *what.split(), *where], check=True, capture_output=True)
    return path
