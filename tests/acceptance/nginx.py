"""nginx as Debian has it, with a configuration of the test's own, on a port of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobstream.guard import start_guarded
from tests.acceptance.service import ROOT

# What Debian's nginx.conf says around the sites, but for its paths.
AROUND = """daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    gzip on;
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{site}
}}
"""


def program() -> str:
    """Where nginx is. Without one the test is skipped; where everything is to be tested, it fails."""
    found = shutil.which("nginx")
    if found is not None:
        return found
    reason = "no nginx: `scripts/setup --nginx` installs it, or says how"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def documented_site(directory: Path, *, listen: int, apis: tuple[int, int]) -> str:
    """The site in docs/operations.md, for these ports."""
    _, _, rest = (ROOT / "docs" / "operations.md").read_text().partition("```nginx\n")
    site, end, _ = rest.partition("```\n")
    assert end, "docs/operations.md shows no site"
    places = {
        "127.0.0.1:8000;": f"127.0.0.1:{apis[0]};",
        "127.0.0.1:8001;": f"127.0.0.1:{apis[1]};",
        "listen 80;": f"listen 127.0.0.1:{listen};",
        "/var/log/nginx/": f"{directory}/",
    }
    for written, here in places.items():
        assert site.count(written) == 1, written
        site = site.replace(written, here)
    return site


@contextlib.contextmanager
def serving(directory: Path, site: str, *, port: int) -> Iterator[None]:
    """nginx with that site, which listens on `port`, until the block ends."""
    nginx = program()
    directory.mkdir(exist_ok=True)
    config, log = directory / "nginx.conf", directory / "log"
    config.write_text(AROUND.format(directory=directory, site=site))
    with log.open("wb") as output:
        process = start_guarded(
            [nginx, "-e", "stderr", "-c", str(config), "-p", str(directory)],
            env=dict(os.environ),
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.stop(10)


def bare_site(target: int, *, listen: int, more: str = "") -> str:
    """The least that makes a proxy."""
    return f"""    server {{
        listen 127.0.0.1:{listen};
        location / {{ proxy_pass http://127.0.0.1:{target}; {more} }}
    }}"""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
