"""FastAPI apps with one import changed, as real processes: an app, a worker, a service, and SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess, start_guarded
from tests.acceptance.dev_stack import eventually
from tests.acceptance.service import ROOT, Service
from tests.ports import free_port

# The two programs of FastAPI's tutorial on background tasks, in our own words, with nothing but the import changed.
SIMPLE = """
from fastapi import FastAPI

from jobstream.background import BackgroundTasks

app = FastAPI()


def write_notification(email: str, message=""):
    with open("simple.txt", mode="w") as file:
        file.write(f"for {email}: {message}")


@app.post("/send-notification/{email}")
async def send_notification(email: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(write_notification, email, message="some notification")
    return {"message": "sent in the background"}
"""

DEPENDING = """
from typing import Annotated

from fastapi import Depends, FastAPI

from jobstream.background import BackgroundTasks

app = FastAPI()


def write_log(message: str):
    with open("depending.txt", mode="a") as log:
        log.write(message)


def get_query(background_tasks: BackgroundTasks, q: str | None = None):
    if q:
        background_tasks.add_task(write_log, f"query: {q}\\n")
    return q


@app.post("/send-notification/{email}")
async def send_notification(email: str, background_tasks: BackgroundTasks, q: Annotated[str, Depends(get_query)]):
    background_tasks.add_task(write_log, f"message to {email}\\n")
    return {"message": "Message sent"}
"""

CHAT = """
from fastapi import FastAPI, WebSocket

from jobstream.background import BackgroundTasks

app = FastAPI()


def keep(line: str) -> None:
    with open("chat.txt", mode="a") as log:
        log.write(f"{line}\\n")


@app.websocket("/chat")
async def chat(websocket: WebSocket, background_tasks: BackgroundTasks):
    await websocket.accept()
    while True:
        background_tasks.add_task(keep, await websocket.receive_text())


@app.post("/lines/{line}")
async def add(line: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(keep, line)
"""

ALL = """
import chat, depending, simple
from fastapi import FastAPI

app = FastAPI()
for part in (chat, depending, simple):
    app.mount("/" + part.__name__, part.app)
"""


class Guest:
    """Their app, run by uvicorn in `directory`, with a service of ours beside it."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        self.service = service
        self._process: GuardedProcess | None = None

    def start(self) -> None:
        port = free_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
        with self.service.log.open("ab") as log:
            self._process = start_guarded(
                [sys.executable, "-m", "uvicorn", "everything:app", "--port", str(port), "--log-level", "warning"],
                env=env
                | {
                    "PYTHONPATH": str(ROOT),
                    "JOBSTREAM_REDIS_URL": str(self.service.redis_url),
                    "JOBSTREAM_BACKGROUND_URL": self.service.url,
                },
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        self.url = f"http://127.0.0.1:{port}"

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.service.wait_until(listens, "the app does not answer")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop(timeout=15)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, service_redis: ChildRedis) -> Iterator[Guest]:
    """The app, a worker that may call its functions, and a service to ask."""
    directory = tmp_path_factory.mktemp("guest")
    for name, text in {"simple": SIMPLE, "depending": DEPENDING, "chat": CHAT, "everything": ALL}.items():
        (directory / f"{name}.py").write_text(text)
    service = Service(directory, redis_url=service_redis.url, JOBSTREAM_BACKGROUND="simple,depending,chat")
    guest = Guest(service, directory)
    try:
        service.start_worker()
        guest.start()
        service.start_api()
        yield guest
    finally:
        guest.stop()
        service.close()


def done(response: httpx2.Response) -> list[str]:
    """How the jobs of an answer have ended."""
    monitors = [link.partition(">")[0].removeprefix("<") for link in response.headers.get_list("link")]
    for monitor in monitors:
        httpx2.get(f"{monitor}/events", timeout=30)  # ends with the job
    return [httpx2.get(monitor).json()["status"] for monitor in monitors]


def test_the_simple_example_does_what_it_does_with_fastapis(guest: Guest) -> None:
    response = httpx2.post(f"{guest.url}/simple/send-notification/ada@example.com")
    assert response.json() == {"message": "sent in the background"}
    assert response.headers["operation-location"] in response.headers["link"]
    assert done(response) == ["succeeded"]
    assert (guest.directory / "simple.txt").read_text() == "for ada@example.com: some notification"


def test_the_example_with_a_dependency_does_what_it_does_with_fastapis(guest: Guest) -> None:
    response = httpx2.post(f"{guest.url}/depending/send-notification/ada@example.com?q=hello")
    assert response.json() == {"message": "Message sent"}
    assert done(response) == ["succeeded", "succeeded"]
    lines = (guest.directory / "depending.txt").read_text().splitlines()
    assert sorted(lines) == ["message to ada@example.com", "query: hello"]


def test_a_socket_hands_over_when_it_ends(guest: Guest) -> None:
    with connect(guest.url.replace("http", "ws") + "/chat/chat", proxy=None) as socket:
        socket.send("one")
        socket.send("two")
    chat = guest.directory / "chat.txt"
    assert eventually(lambda: chat.exists() and {"one", "two"} <= set(chat.read_text().split()))


def test_a_web_process_that_is_killed_after_its_answers_takes_nothing_with_it(guest: Guest) -> None:
    guest.service.kill_worker()  # so that none of them has run when the app dies
    with httpx2.Client() as http:
        for number in range(50):
            assert http.post(f"{guest.url}/chat/lines/line-{number}").status_code == 200
        guest.kill()
    guest.service.start_worker()
    chat, wanted = guest.directory / "chat.txt", {f"line-{number}" for number in range(50)}
    assert eventually(lambda: chat.exists() and wanted <= set(chat.read_text().split()))
