"""`jobstream dev`: API, workers and a Redis for as long as the terminal is open. Development, never production."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import click

from jobstream.call import CallSettings
from jobstream.embedded import ChildRedis, ServerProgram, find_server
from jobstream.errors import ConfigurationError
from jobstream.files import FileSettings
from jobstream.logs import LogSettings
from jobstream.redis import DURABILITY, RedisKind, RedisSettings, masked
from jobstream_cli.exits import Exit
from jobstream_cli.ports import answers, base_url, get_json, why_not
from jobstream_cli.supervise import Ended, Happening, listening, supervise
from jobstream_workers.settings import WorkerSettings

RUNNING_JOBS_GET_SECONDS = "3"
"""Patience at the end of a `dev`: short, since whoever presses Ctrl-C waits."""


RedisChoice = Literal["auto", "own", "server", "fake"]
"""auto: JOBSTREAM_REDIS_URL, else own. own: server, else fake. server: a child process. fake: fakeredis in memory."""


class RedisDied(Exception):
    """The Redis child has ended while it was needed."""


@dataclass(frozen=True)
class DevOptions:
    """What `jobstream dev` was asked for."""

    host: str
    port: int
    workers: int
    redis: RedisChoice
    app: str | None = None
    """Somebody's own app (`module:app`), which then has the port."""

    @property
    def service_port(self) -> int:
        """The port of the service itself."""
        return self.port if self.app is None else self.port + 1

    @property
    def url(self) -> str:
        """Where the service will be."""
        return base_url(self.host, self.service_port)


def run(options: DevOptions) -> int:
    """Run until Ctrl-C or SIGTERM (0), or until something that is needed ends by itself (1)."""
    for port in sorted({options.port, options.service_port}):
        if (reason := why_not(options.host, port)) is not None:
            say(f"error: port {port} on {options.host} cannot be used: {reason}. Choose another with --port.")
            return Exit.USAGE
    with listening() as happened:
        try:
            return _on_some_redis(options, happened)
        except ConfigurationError as error:
            say(f"error: {error}")
            return Exit.USAGE
        except OSError:
            if happened.empty():
                raise
            return Exit.OK  # Ctrl-C also hit a process that was just being made, before it had a session of its own


def say(text: str) -> None:
    """A line for the person in front."""
    click.echo(text, err=True)


def _on_some_redis(options: DevOptions, happened: SimpleQueue[Happening]) -> int:
    from jobstream_api.auth.settings import AuthSettings, check_exposure

    check_exposure(AuthSettings(), options.host)  # before anything is started: the API would end at once
    data = Path(os.environ.get("JOBSTREAM_DATA_DIR") or ".jobstream")
    env = _environment(options, data)
    url = RedisSettings().redis_url
    if url and options.redis == "auto":
        return _on_url(options, env, url, happened)
    program = None if options.redis == "fake" else find_server()
    if program is not None:
        return _on_child(options, env, program, data, happened)
    if options.redis == "server":
        raise ConfigurationError("there is no valkey-server or redis-server (6.2 or later) on PATH")
    return _on_fake(options, env, happened)


def _on_url(options: DevOptions, env: dict[str, str], url: str, happened: SimpleQueue[Happening]) -> int:
    say(f"redis   {masked(url)} (JOBSTREAM_REDIS_URL): {DURABILITY['external']}")
    return _processes(options, env, happened, url=url, kind="external")


def _on_child(
    options: DevOptions, env: dict[str, str], program: ServerProgram, data: Path, happened: SimpleQueue[Happening]
) -> int:
    with ChildRedis(program, data / "redis") as redis:
        say(f"redis   child: {redis.describe()}")
        say(f"        {DURABILITY['child']}")

        def check() -> None:
            if (code := redis.poll()) is not None:
                raise RedisDied(f"redis has ended with exit code {code}")

        try:
            return _processes(options, env, happened, url=redis.url, kind="child", check=check)
        except RedisDied as error:
            say(f"error: {error}; everything is stopped")
            return Exit.FAILED


def _on_fake(options: DevOptions, env: dict[str, str], happened: SimpleQueue[Happening]) -> int:
    """All in this process: the data have no other home."""
    from jobstream_api.settings import ApiSettings
    from jobstream_cli import together

    say("redis   fakeredis, in the memory of this process")
    say("warning EVERYTHING IS GONE AT EXIT. Good for a first look and for tests;")
    say("warning to keep jobs, install redis-server or valkey-server, or set JOBSTREAM_REDIS_URL.")
    if options.workers > 1:
        say("        --workers has no effect: API and worker share this process")
    os.environ.update(env)
    # redis_url: one in .env would be another one than the service is on
    api, worker = ApiSettings(redis_kind="fake"), WorkerSettings(redis_kind="fake")
    guest = None if options.app is None else together.Guest(options.app, options.host, options.port)
    return asyncio.run(
        together.run(api, worker, happened, guest=guest, poll=_announcer(options), stopping=_say_stopping)
    )


def _processes(
    options: DevOptions,
    env: dict[str, str],
    happened: SimpleQueue[Happening],
    *,
    url: str,
    kind: RedisKind,
    check: Callable[[], None] = lambda: None,
) -> int:
    this = [sys.executable, "-m", "jobstream_cli"]
    names = ["worker"] if options.workers == 1 else [f"worker {number + 1}" for number in range(options.workers)]
    announce = _announcer(options)

    def poll() -> None:
        check()
        announce()

    where = ["--host", options.host, "--port", str(options.port)]
    guest = {} if options.app is None else {"app": [sys.executable, "-m", "uvicorn", options.app, *where]}
    ended = supervise(
        {"api": [*this, "api"], **{name: [*this, "worker"] for name in names}, **guest},
        happened,
        env=env | {"JOBSTREAM_REDIS_URL": url, "JOBSTREAM_REDIS_KIND": kind},
        poll=poll,
        stopping=_say_stopping,
    )
    if ended is None:
        return Exit.OK
    say(f"error: {_how(ended)}; everything is stopped")
    return Exit.FAILED


def _how(ended: Ended) -> str:
    return f"{ended.name} has ended with exit code {ended.code}"


def _say_stopping() -> None:
    say("stopping: running jobs get a few seconds; Ctrl-C again to force")


def _announcer(options: DevOptions) -> Callable[[], None]:
    """Says once that the service is ready, as soon as it is and a worker has announced itself."""
    announced = False

    def announce() -> None:
        nonlocal announced
        if announced:
            return
        health = get_json(options.host, options.service_port, "/readyz?verbose=1")
        if options.app is not None and not answers(options.host, options.port):
            return
        if isinstance(health, dict) and health.get("workers"):
            announced = True
            if options.app is not None:
                say(f"app     {base_url(options.host, options.port)}   {options.app}")
            say(f"ready   {options.url}   API reference: {options.url}/docs   Ctrl-C stops")

    return announce


def _environment(options: DevOptions, data: Path) -> dict[str, str]:
    """What the processes are told. What people have set themselves, in the environment or in .env, wins."""
    env = dict(os.environ)
    env |= {"JOBSTREAM_HOST": options.host, "JOBSTREAM_PORT": str(options.service_port)}
    if options.app is not None:
        if not CallSettings().background_modules:
            env["JOBSTREAM_BACKGROUND"] = options.app.partition(":")[0].partition(".")[0]
        env.setdefault("JOBSTREAM_BACKGROUND_URL", options.url)
    if "files_dir" not in FileSettings().model_fields_set:
        env["JOBSTREAM_FILES_DIR"] = str(data / "files")
    if "shutdown_seconds" not in WorkerSettings().model_fields_set:
        env["JOBSTREAM_SHUTDOWN_SECONDS"] = RUNNING_JOBS_GET_SECONDS
    if "log_format" not in LogSettings().model_fields_set:
        env["JOBSTREAM_LOG_FORMAT"] = "console"
    return env
