"""Finding tasks: in modules, in installed packages, by reference; and the sentences when there is nothing to find."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from jobstream.errors import ConfigurationError
from jobstream_workers import loader
from jobstream_workers.loader import add_working_directory, find_task, load_tasks
from tests import sample_tasks

ONE_TASK = "from jobstream import task\n@task\ndef {name}() -> None: ...\n"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the user's own modules, forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(directory: Path, name: str, source: str) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)


def announce(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("mine", value, "jobstream.tasks")
    monkeypatch.setattr(loader, "installed_entry_points", lambda group: [point] if group == point.group else [])


def test_every_task_of_a_module_is_found_by_its_name() -> None:
    tasks = load_tasks(["tests.sample_tasks"], entry_points=False)
    assert tasks["add"] is sample_tasks.add
    assert tasks["process_double"] is sample_tasks.process_double
    assert "hidden" not in tasks


def test_a_package_gives_what_its_namespace_holds(directory: Path) -> None:
    write(directory, "shop/__init__.py", "from shop.orders import ship\n")
    write(directory, "shop/orders.py", ONE_TASK.format(name="ship") + "@task\ndef bill() -> None: ...\n")
    assert list(load_tasks(["shop"], entry_points=False)) == ["ship"]


def test_a_task_found_twice_is_one_task(directory: Path) -> None:
    write(directory, "orders_a.py", ONE_TASK.format(name="ship") + "also = ship\n")
    write(directory, "orders_b.py", "from orders_a import ship\n")
    assert list(load_tasks(["orders_a", "orders_b"], entry_points=False)) == ["ship"]


def test_two_tasks_of_one_name_are_refused_and_both_named(directory: Path) -> None:
    write(directory, "first.py", ONE_TASK.format(name="ship"))
    write(directory, "second.py", ONE_TASK.format(name="ship"))
    with pytest.raises(ConfigurationError, match=r"'ship': first:ship and second:ship"):
        load_tasks(["first", "second"], entry_points=False)


@pytest.mark.parametrize("name", ["not_there", "tests.not_there", "not_there.tasks", "tasks.py", "", ".relative"])
def test_a_module_that_is_not_there_is_named_with_its_setting(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_tasks([name], entry_points=False)
    assert caught.value.detail.startswith(f"JOBSTREAM_TASKS: module {name!r} cannot be imported: ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import not_installed", "not_installed"), ("x = (", "never closed"), ("raise KeyError", "KeyError")],
)
def test_a_module_that_fails_says_why(directory: Path, source: str, reason: str) -> None:
    write(directory, "broken.py", source)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_tasks(["broken"], entry_points=False)
    assert caught.value.__cause__ is not None


def test_a_module_without_tasks_is_refused(directory: Path) -> None:
    write(directory, "empty.py", "def ship() -> None: ...\n")
    with pytest.raises(ConfigurationError, match="module 'empty' has no tasks"):
        load_tasks(["empty"], entry_points=False)


def test_installed_packages_announce_a_module_or_a_task(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, "plugin.py", ONE_TASK.format(name="ship") + "@task\ndef bill() -> None: ...\n")
    announce(monkeypatch, "plugin")
    assert list(load_tasks([])) == ["ship", "bill"]
    announce(monkeypatch, "plugin:bill")
    assert list(load_tasks([])) == ["bill"]
    assert load_tasks([], entry_points=False) == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [("plugin:number", "has no tasks"), ("plugin:nothing", "cannot be loaded"), ("no_plugin", "cannot be loaded")],
)
def test_a_wrong_announcement_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    write(directory, "plugin.py", "number = 1\n")
    announce(monkeypatch, value)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_tasks([])
    assert value in caught.value.detail


def test_a_task_is_found_by_its_reference() -> None:
    assert find_task("tests.sample_tasks:add", "add") is sample_tasks.add
    assert find_task("tests.sample_tasks:_double", "process_double") is sample_tasks.process_double


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("tests.sample_tasks:gone", "not an attribute"),
        ("tests.sample_tasks:add", "not an attribute"),
        ("tests.not_there:add", "cannot be imported"),
        ("tests.sample_tasks:nested.<locals>.hidden", "inside a function"),
        ("__main__:add", "script that was started"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_wrong_set_up(reference: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        find_task(reference, "another")


def test_the_working_directory_is_added_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    write(here, "at_home.py", ONE_TASK.format(name="ship"))
    add_working_directory()
    before = list(sys.path)
    add_working_directory()
    assert sys.path == before
    assert "ship" in load_tasks(["at_home"], entry_points=False)
