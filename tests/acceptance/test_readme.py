"""Every snippet of the README and of the guides is run against a real `jobstream dev`, and prints what it says.

In the documents `console` blocks hold commands (`$ …`) and what they print, `python` blocks hold files (`# name.py` on
top) or scripts. `…` stands for whatever is left out. Ids, times and versions differ from run to run: a job's id in a
document stands for the one that the command of its first appearance gave.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.dev_stack import Stack

ROOT = Path(__file__).parents[2]
RUN = (
    *(
        "README.md",
        "docs/tasks.md",
        "docs/files.md",
        "docs/http.md",
        "docs/client.md",
        "docs/security.md",
        "docs/webhooks.md",
    ),
    "docs/schedules.md",
)
LINKED = ("README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))))

NOT_RUN = {
    "make demo": "tests/acceptance/test_demo.py runs `jobstream demo`, which is all that it does",
    "make test": "it is what runs this",
    "pip install '.[all]'": "tests/packaging/test_wheel.py installs the wheel in an environment of its own",
}
"""Commands that are not run here, and why."""

NO_CODE = {"mermaid", "text"}
DOCUMENTED_PORT = 8000
COMMAND_SECONDS = 60.0


class Block(NamedTuple):
    """A fenced block, and the line of the document that its text begins at."""

    language: str
    text: str
    line: int


class Command(NamedTuple):
    """A command of a block, and what the document says that it prints (nothing: it does not say)."""

    text: str
    output: str
    line: int


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document. A fence that is indented or never closed is a mistake."""
    language: str | None = None
    text: list[str] = []
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.lstrip().startswith("```"):
            text.append(line)
        elif language is None:
            language, text = line.removeprefix("```"), []
            assert language.isalpha(), f"{document}:{number}: name the language of the block, without an indent"
        else:
            assert line == "```", f"{document}:{number}: expected the end of the block"
            yield Block(language, "\n".join(text) + "\n", number - len(text))
            language = None
    assert language is None, f"{document}: a block has no end"


def commands(block: Block) -> Iterator[Command]:
    """Its commands. In a `console` block they begin with `$ `, elsewhere each line is one; `\\` goes on."""
    prompt = "$ " if block.language == "console" else ""
    lines = list(enumerate(block.text.splitlines(), start=block.line))
    while lines:
        number, first = lines.pop(0)
        assert first.startswith(prompt), f"line {number}: what prints this? {first!r}"
        text = [first.removeprefix(prompt)]
        while text[-1].endswith("\\"):
            text.append(lines.pop(0)[1])
        output: list[str] = []
        while prompt and lines and not lines[0][1].startswith(prompt):
            output.append(lines.pop(0)[1])
        if text[0] and not text[0].startswith("#"):
            yield Command("\n".join(text), "\n".join(output), number)


_JOB_ID = r"01[0-9A-HJKMNP-TV-Z]{24}"
_EPOCH = r"\b[0-9a-f]{8}(?=-\d+\b)"
_DIFFERS = (
    r"\d{4}-\d\d-\d\dT[\d:.]+Z",
    r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT",
    r"[\w.-]+:\d+:[0-9a-f]{8}\b",  # a worker
    r'"version":\d+',
    r'W/"\d+"',
    r'"eta_s":[\d.]+',
    r"(?<=[0-9a-f]{8}-)\d+",  # an event's version
    r"content-length: \d+",
    r" +[\d.]+ m?s\b",
)
"""What a document may show as it happened to be once."""

_TOKEN = re.compile(
    "|".join(
        [
            r"(?P<lines>^…\n)",
            r"(?P<some>…)",
            rf"(?P<name>{_JOB_ID}|{_EPOCH})",
            *(f"(?P<differs_{index}>{found})" for index, found in enumerate(_DIFFERS)),
        ]
    ),
    re.MULTILINE,
)


class Names:
    """The ids of jobs and the epoch: what the document calls them, and what they are in this run."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def put_in(self, text: str) -> str:
        """The text with this run's names. Fails for a name that no output has shown before."""
        return re.sub(f"{_JOB_ID}|{_EPOCH}", lambda match: self._known[match[0]], text)

    def match(self, shown: str, printed: str) -> bool:
        """Whether `printed` is what the document shows; from then on the names that it shows are known."""
        new: dict[str, str] = {}
        pattern = "".join(self._pattern(shown, new))
        found = re.fullmatch(pattern, _tidy(printed))
        if found is not None:
            self._known |= {name: found[group] for name, group in new.items()}
        return found is not None

    def _pattern(self, shown: str, new: dict[str, str]) -> Iterator[str]:
        text, end = _tidy(shown), 0
        for token in _TOKEN.finditer(text):
            yield re.escape(text[end : token.start()])
            end = token.end()
            kind = str(token.lastgroup)
            if kind == "lines":
                yield r"(?:.*\n)*?"
            elif kind == "some":
                yield r".*?"
            elif kind == "name" and token[0] in self._known:
                yield re.escape(self._known[token[0]])
            elif kind == "name" and token[0] in new:
                yield f"(?P={new[token[0]]})"
            elif kind == "name":
                new[token[0]] = group = f"name_{len(new)}"
                yield f"(?P<{group}>{_JOB_ID if token[0].startswith('01') else _EPOCH})"
            else:
                yield _DIFFERS[int(kind.removeprefix("differs_"))]
        yield re.escape(text[end:])


def _tidy(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())


@dataclass
class Walk:
    """Goes through a document as a reader would, in an empty directory."""

    document: str
    directory: Path
    environment: pytest.MonkeyPatch
    ending: ExitStack

    def __post_init__(self) -> None:
        self.names = Names()
        self.stack: Stack | None = None
        self.files: dict[str, Block] = {}
        self.ran: list[str] = []
        self.started = self.ending.enter_context(ExitStack())

    def go(self) -> None:
        """Run it all. Fails at the first snippet that does not do what it says."""
        for block in blocks(self.document):
            match block.language:
                case "python":
                    self._python(block)
                case "console" | "bash" | "sh":
                    for command in commands(block):
                        self._command(command)
                case "json":
                    json.loads(block.text)
                case "toml":
                    tomllib.loads(block.text)
                case other:
                    assert other in NO_CODE, f"{self._at(block.line)}: who runs {other}? Decide it in {__file__}"
        for name, block in self.files.items():
            stem = rf"\b{re.escape(name.removesuffix('.py'))}\b"
            assert any(re.search(stem, command) for command in self.ran), f"{self._at(block.line)}: nobody uses {name}"

    def _python(self, block: Block) -> None:
        named = re.match(r"# (\w+\.py)\n", block.text)
        name = named[1] if named else f"line_{block.line}.py"
        (self.directory / name).write_text(self._here(block.text), encoding="utf-8")
        self.files[name] = block
        if not named:
            self._command(Command(f"python {name}", "", block.line))

    def _command(self, command: Command) -> None:
        if command.text in NOT_RUN:
            return
        self.ran.append(command.text)
        if re.search(r"(^|\s)jobstream dev\b", command.text):
            self._start(command)
            return
        done = subprocess.run(
            ["bash", "-c", self._here(self.names.put_in(command.text))],
            cwd=self.directory,
            env=self._env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0, f"{self._at(command.line)}: exit code {done.returncode}: {done.stdout}"
        self._compare(command, done.stdout)

    def _start(self, command: Command) -> None:
        """`NAME=value… jobstream dev …`, on a port that is free and on fakeredis, until the next one or the end."""
        self.started.close()
        words = shlex.split(self._here(command.text))
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            self.environment.setenv(name, value)
        stack = self._stack(*words[1:])
        self.stack = self.started.enter_context(stack)
        stack.wait_for("ready ")
        self._compare(command, stack.text.partition("(end of output)")[0])

    def _compare(self, command: Command, printed: str) -> None:
        printed = self._documented(printed)
        if command.output.strip():
            same = self.names.match(command.output, printed)
            assert same, f"{self._at(command.line)}: $ {command.text}\n{printed}\nis not\n{command.output}"

    def _stack(self, *arguments: str) -> Stack:
        return Stack(*arguments, directory=self.directory, redis="fake")

    def _documented(self, printed: str) -> str:
        """What was printed, as if it were on the document's port."""
        return printed.replace(f":{self.stack.port}", f":{DOCUMENTED_PORT}") if self.stack else printed

    def _here(self, text: str) -> str:
        port = self.stack.port if self.stack else DOCUMENTED_PORT
        return re.sub(rf"\b(localhost|127\.0\.0\.1):{DOCUMENTED_PORT}\b", rf"\1:{port}", text)

    def _env(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        (self.directory / ".curlrc").write_text("silent\nshow-error\n")  # its meter is for terminals
        url = {"JOBSTREAM_URL": self.stack.url} if self.stack else {}
        return os.environ | {"PATH": path, "CURL_HOME": str(self.directory), "NO_PROXY": "*", "NO_COLOR": "1"} | url

    def _at(self, line: int) -> str:
        return f"{self.document}:{line}"


@pytest.mark.usefixtures("curl")
@pytest.mark.parametrize("document", RUN)
def test_every_snippet_does_what_the_document_says(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as ending:
        Walk(document, tmp_path, monkeypatch, ending).go()


def test_what_is_not_run_is_still_in_a_document() -> None:
    shown = {
        command.text
        for document in RUN
        for block in blocks(document)
        if block.language in ("console", "bash", "sh")
        for command in commands(block)
    }
    assert shown >= NOT_RUN.keys()


@pytest.mark.parametrize("document", LINKED)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        assert not heading or heading in headings(file), f"{document}: {target}"


@pytest.mark.parametrize("document", LINKED)
def test_files_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:jobstream|api|workers|cli|tests|scripts)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), f"{document}: {path}"


def headings(file: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("all of it", "all of it\n", True),
        ("all of it", "all of it, and more\n", False),
        ("a … c", "a b c", True),
        ("a … c", "a b\nb c", False),
        ("a\n…\nc", "a\nb\nb\nc\n", True),
        ("a\n…\nc", "a\nc\n", True),
        ("a\n…\nc", "a\nb\n", False),
        ("01M7YPYX8Q20FDYG980B1AFX7H", "01ARZ3NDEKTSV4RRFFQ69G5FAV", True),
        ("01M7YPYX8Q20FDYG980B1AFX7H", "no id", False),
        ("id: 3b05c06d-4", "id: 0123abcd-5", True),
        ('{"version":3,"attempt":1}', '{"version":4,"attempt":1}', True),
        ('{"version":3,"attempt":1}', '{"version":3,"attempt":2}', False),
        ("in 0.6 s", "in 12 ms", True),
    ],
)
def test_an_output_is_compared_but_for_what_differs_from_run_to_run(shown: str, printed: str, same: bool) -> None:
    assert Names().match(shown, printed) is same


def test_a_name_stands_for_one_job_only() -> None:
    names = Names()
    shown, first, other = "01M7YPYX8Q20FDYG980B1AFX7H", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "01BX5ZZKBKACTAV9WEVGEMMVRZ"
    assert not names.match(f"{shown} {shown}", f"{first} {other}")
    assert names.match(f"{shown} {shown}", f"{first} {first}")
    assert names.put_in(f"/jobs/{shown}") == f"/jobs/{first}"
    assert not names.match(shown, other)
