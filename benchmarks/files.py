"""Memory and speed of a large upload: `python -m benchmarks.files`.

A client sends one file of `--bytes` (2 GiB) as a form. It goes to a bare ASGI receiver, which writes what it gets to a
file and does nothing else, and to the service: to a directory, then to a bucket of moto's S3 server. The worker reads
the file again. Memory is the resident set: before, and its highest point (Linux, VmHWM, set back before the upload).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import describe
from jobstream import JobContext, JobFile, task
from jobstream.embedded import ChildRedis, find_server

ROOT = Path(__file__).resolve().parents[1]
BLOCK = os.urandom(1 << 20)
MIB = 1 << 20
PATIENCE = 900.0


@task(name="read-file")
def read_file(job: JobContext, file: JobFile, at_most: int) -> int:
    """Read so much of a file as a stream."""
    read = 0
    with job.files.open(file) as source:
        while read < at_most and (piece := source.read(MIB)):
            read += len(piece)
    return read


class Memory(NamedTuple):
    """A process's resident set, in bytes."""

    before: int
    most: int

    def __str__(self) -> str:
        return f"{self.before / MIB:.0f} → {self.most / MIB:.0f} MiB (+{(self.most - self.before) / MIB:.0f})"


def resident(pid: int, name: str) -> int:
    """A line of /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


@contextmanager
def process(*arguments: str, cwd: Path, **environment: str) -> Iterator[int]:
    """A Python process of ours until the block ends; its id."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (cwd / "log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=clean | environment | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=log,
            stderr=log,
        )
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait(30)


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str) -> None:
    """Until something answers there with a success."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} does not answer")
        time.sleep(0.1)


def send(port: int, path: str, size: int, at_most: int) -> tuple[float, dict[str, Any]]:
    """Upload `size` bytes; the seconds until the answer, and the answer."""
    head = (
        f'--b\r\nContent-Disposition: form-data; name="at_most"\r\n\r\n{at_most}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    ).encode()
    tail = b"\r\n--b--\r\n"
    length = len(head) + size + len(tail)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        began = time.monotonic()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
            + head
        )
        for _ in range(size // MIB):
            connection.sendall(BLOCK)
        connection.sendall(tail)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    seconds = time.monotonic() - began
    lines, _, body = answer.partition(b"\r\n\r\n")
    if lines.split()[1] not in (b"200", b"202"):
        raise SystemExit(answer.decode(errors="replace"))
    return seconds, json.loads(body)


def floor(size: int) -> float:
    """Seconds that the bare receiver takes."""
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        port = free_port()
        with process(
            *("-m", "uvicorn", "benchmarks.files_floor:app", "--port", str(port), "--log-level", "error"),
            cwd=Path(directory),
        ):
            wait_for(f"http://127.0.0.1:{port}/")
            return send(port, "/", size, 0)[0]


def service(size: int, *, bucket: bool) -> None:
    """Upload, let the worker read, and say what it took."""
    program = find_server()
    if program is None:
        raise SystemExit("no redis-server or valkey-server on PATH")
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory, ExitStack() as stack:
        here, port = Path(directory), free_port()
        redis = stack.enter_context(ChildRedis(program, here))
        environment = {
            "JOBSTREAM_REDIS_URL": redis.url,
            "JOBSTREAM_FILES_DIR": str(here / "files"),
            "JOBSTREAM_MAX_FILE_BYTES": str(size),
            "JOBSTREAM_TASKS": "benchmarks.files",
            "JOBSTREAM_PORT": str(port),
        }
        if bucket:
            s3 = free_port()
            stack.enter_context(process("-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3), cwd=here))
            wait_for(f"http://127.0.0.1:{s3}/moto-api/")
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3}/bench", method="PUT")).close()
            environment |= {
                "JOBSTREAM_FILES_URL": "s3://bench/files",
                "JOBSTREAM_FILES_ENDPOINT": f"http://127.0.0.1:{s3}",
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
            }
        api = stack.enter_context(process("-m", "jobstream_api.main", cwd=here, **environment))
        wait_for(f"http://127.0.0.1:{port}/livez")
        worker = stack.enter_context(process("-m", "jobstream_workers.main", cwd=here, **environment))
        wait_for(f"http://127.0.0.1:{port}/tasks/read-file")
        # Once with a small file: what is loaded at the first upload is no cost of a large one.
        for amount, at_most in ((16 * MIB, MIB), (size, 64 * MIB if bucket else size)):
            before = {pid: resident(pid, "VmRSS") for pid in (api, worker)}
            for pid in before:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            seconds, job = send(port, "/read-file", amount, at_most)
            began = time.monotonic()
            while not (ended := poll(port, job["id"]))["done"]:
                time.sleep(0.2)
            reading = time.monotonic() - began
            if ended["result"] != min(amount, at_most):
                raise SystemExit(json.dumps(ended))
        memory = {pid: Memory(before[pid], resident(pid, "VmHWM")) for pid in before}
        print(f"{'bucket' if bucket else 'directory'}:")
        print(f"  upload {seconds:.1f} s, {size / MIB / seconds:.0f} MiB/s; API {memory[api]}")
        print(f"  the worker read {at_most / MIB:.0f} MiB in {reading:.1f} s; worker {memory[worker]}")


def poll(port: int, job_id: str) -> dict[str, Any]:
    """The job."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/jobs/{job_id}", timeout=60) as response:
        job: dict[str, Any] = json.loads(response.read())
        return job


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Memory and speed of a large upload.")
    parser.add_argument("--bytes", type=int, default=2 << 30)
    parser.add_argument("--only", choices=["floor", "directory", "bucket"], help="moto holds the file in memory")
    options = parser.parse_args()
    size = options.bytes // MIB * MIB
    print("\n".join(describe()))
    if options.only in (None, "floor"):
        seconds = floor(size)
        print(f"floor: a bare receiver takes {size / MIB:.0f} MiB in {seconds:.1f} s, {size / MIB / seconds:.0f} MiB/s")
    if options.only in (None, "directory"):
        service(size, bucket=False)
    if options.only in (None, "bucket"):
        service(size, bucket=True)


if __name__ == "__main__":
    main()
