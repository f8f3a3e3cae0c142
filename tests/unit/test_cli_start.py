"""How the command starts: light, and with arguments that say what they mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import JsonValue

from jobstream_cli.exits import Exit, worst
from jobstream_cli.fields import parse_fields, parse_files
from jobstream_cli.main import cli
from tests.ports import free_port

HEAVY = "fastapi httpx2 uvicorn arq starlette redis".split()


def test_starting_loads_no_heavy_library() -> None:
    program = f"import sys, jobstream_cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_help_names_every_command_and_the_exit_codes() -> None:
    said = CliRunner().invoke(cli, ["--help"]).stdout
    for word in "dev api worker submit watch list show cancel demo --url --token --version".split():
        assert word in said
    assert "124" in said


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("jobstream, version ")


@pytest.mark.parametrize("arguments", [["watch"], ["submit"], ["list", "--status", "happy"], ["no-such-command"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == Exit.USAGE


@pytest.mark.parametrize(("missing", "arguments", "extra"), [("fastapi", ["api"], "api"), ("httpx2", ["list"], "cli")])
def test_a_missing_extra_is_named(missing: str, arguments: list[str], extra: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = {['jobstream', *arguments]!r}\n"
        "from jobstream_cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.USAGE
    assert done.stderr == f"error: {missing} is not installed; it comes with: pip install 'jobstream[{extra}]'\n"


@pytest.mark.parametrize("command", ["api", "worker"])
def test_a_process_without_redis_says_so_in_one_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from any .env
    result = CliRunner().invoke(cli, [command])
    assert result.exit_code == Exit.USAGE
    assert result.stderr.startswith("error: JOBSTREAM_REDIS_URL is not set")


@pytest.mark.parametrize("redis", ["own", "fake"])
def test_dev_on_a_network_starts_nothing_until_somebody_decides(
    redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["dev", "--host", "0.0.0.0", "--port", str(free_port()), "--redis", redis])
    assert result.exit_code == Exit.USAGE
    assert "error: JOBSTREAM_AUTH is not set" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], {}),
        (["text=to be"], {"text": "to be"}),
        (["text=a=b:=c"], {"text": "a=b:=c"}),
        (["url=http://h/p?q=1"], {"url": "http://h/p?q=1"}),
        (["empty="], {"empty": ""}),
        (["limit:=10", "deep:=true", 'list:=[1, "a"]'], {"limit": 10, "deep": True, "list": [1, "a"]}),
        (["limit=10"], {"limit": "10"}),
        (["a=1", "a=2"], {"a": "2"}),
    ],
)
def test_arguments_spell_an_object(arguments: list[str], wanted: dict[str, JsonValue]) -> None:
    assert parse_fields(arguments) == wanted


def test_files_and_stdin_fill_fields_and_whole_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be\n")
    Path("object.json").write_text('{"a": 1, "b": 2}')
    assert parse_fields(["text=@text.txt", "whole:=@object.json"]) == {"text": "to be\n", "whole": {"a": 1, "b": 2}}
    assert parse_fields(["@object.json", "b:=3"]) == {"a": 1, "b": 3}
    with Path("object.json").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert parse_fields(["-"]) == {"a": 1, "b": 2}


def test_uploads_go_to_the_field_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "odd=name.txt"):
        Path(name).touch()
    assert parse_files(["a.txt", "document=b.txt", "odd=name.txt"]) == {
        "files": [Path("a.txt"), Path("odd=name.txt")],
        "document": [Path("b.txt")],
    }
    for argument in ("missing.txt", "document=missing.txt", "."):
        with pytest.raises(click.UsageError):
            parse_files([argument])


@pytest.mark.parametrize("argument", ["word", "a:=nonsense", "a=@missing.txt", "@missing.json", "=value", "a@b"])
def test_an_argument_that_means_nothing_is_refused(argument: str) -> None:
    with pytest.raises(click.UsageError):
        parse_fields([argument])


def test_the_worst_exit_code_wins() -> None:
    assert worst([]) == Exit.OK
    assert worst([Exit.OK, Exit.CANCELLED]) == Exit.CANCELLED
    assert worst([Exit.CANCELLED, Exit.FAILED, Exit.OK]) == Exit.FAILED
    assert worst([Exit.UNREACHABLE, Exit.TIMEOUT]) == Exit.UNREACHABLE
