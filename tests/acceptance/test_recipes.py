"""Every recipe's before and after is run as it stands there, with real processes and a real Redis."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobstream.embedded import ServerProgram
from tests.acceptance.dev_stack import Stack, eventually, is_free
from tests.acceptance.test_readme import DOCUMENTED_PORT, ROOT, Command, Walk
from tests.ports import free_port

RECIPES = ("docs/background.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/recipes/from-*.md"))))
REDIS_PORT = 6379


def two_free_ports() -> int:
    """A port for an app; the next one, for the service beside it, is free as well."""
    port = free_port()
    while (after := free_port()) != port + 1:
        port = after
    return port


class RecipeWalk(Walk):
    """A walk in which commands that end in `&` go on until the next `jobstream dev`, or the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        port = two_free_ports()
        self.ports = {DOCUMENTED_PORT: port, DOCUMENTED_PORT + 1: port + 1, REDIS_PORT: free_port()}
        self.beside = self.ending.enter_context(ExitStack())

    def start_redis(self, program: ServerProgram) -> None:
        """The Redis that a document takes for granted."""
        port = self.ports[REDIS_PORT]
        words = [str(program.path), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        self.ending.enter_context(process([*words, str(self.directory)], self.directory / "redis.log"))
        assert eventually(lambda: not is_free(port)), (self.directory / "redis.log").read_text()

    def _command(self, command: Command) -> None:
        if not command.text.endswith("&"):
            super()._command(command)
            return
        self.ran.append(command.text)
        said = self.directory / f"{len(self.ran)}.log"
        line = f"exec {self._here(command.text).removesuffix('&')}"
        self.beside.enter_context(process(["bash", "-c", line], said, cwd=self.directory, env=self._env()))
        same = eventually(lambda: self.names.match(command.output, self._documented(said.read_text())), within=60)
        assert same, f"{self._at(command.line)}: $ {command.text}\n{said.read_text()}\nis not\n{command.output}"

    def _start(self, command: Command) -> None:
        self.beside.close()
        super()._start(command)

    def _stack(self, *arguments: str) -> Stack:
        return Stack(*arguments, directory=self.directory, redis="fake", port=self.ports[DOCUMENTED_PORT])

    def _here(self, text: str) -> str:
        for documented, port in self.ports.items():
            text = re.sub(rf"(\b(?:localhost|127\.0\.0\.1):|port[ =]){documented}\b", rf"\g<1>{port}", text)
        return text

    def _documented(self, printed: str) -> str:
        for documented, port in self.ports.items():
            printed = printed.replace(f":{port}", f":{documented}")
        return printed


@contextlib.contextmanager
def process(
    words: list[str], said: Path, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[None]:
    """A process with all that it starts; what it prints is in `said`."""
    with said.open("wb") as output:
        running = subprocess.Popen(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("document", RECIPES)
def test_a_recipe_does_what_it_says_before_and_after(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_program: ServerProgram
) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")  # Celery would rather not be root, which a test may be
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a reader has fewer
    with ExitStack() as ending:
        walk = RecipeWalk(document, tmp_path, monkeypatch, ending)
        if str(REDIS_PORT) in (ROOT / document).read_text(encoding="utf-8"):
            walk.start_redis(server_program)
        walk.go()


def test_the_index_names_every_recipe() -> None:
    named = set(re.findall(r"\]\((from-[\w-]+\.md)\)", (ROOT / "docs/recipes/README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in ROOT.glob("docs/recipes/from-*.md")}
