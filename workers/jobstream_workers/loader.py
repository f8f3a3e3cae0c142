"""Finds tasks: those of the modules in JOBSTREAM_TASKS, those of installed packages, and one by its reference."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points as installed_entry_points
from types import ModuleType

from jobstream.errors import ConfigurationError
from jobstream.task import Task

ENTRY_POINT_GROUP = "jobstream.tasks"
"""Packages announce their tasks in it: each entry point names a module or a task."""


def load_tasks(modules: Sequence[str], *, entry_points: bool = True) -> dict[str, Task]:
    """The tasks, by name, that are attributes of these modules, and with `entry_points` those of installed packages.

    Raises ConfigurationError: a module cannot be imported, a module has no task, two tasks have one name.
    """
    tasks: dict[str, Task] = {}
    for name in modules:
        _add(tasks, _tasks_of(_import(name), f"JOBSTREAM_TASKS: module {name!r}"))
    for point in installed_entry_points(group=ENTRY_POINT_GROUP) if entry_points else ():
        where = f"entry point {point.name!r} ({ENTRY_POINT_GROUP}): {point.value!r}"
        try:
            target: object = point.load()
        except Exception as error:
            raise ConfigurationError(f"{where} cannot be loaded: {error}") from error
        _add(tasks, [target] if isinstance(target, Task) else _tasks_of(target, where))
    return tasks


def find_task(reference: str, name: str) -> Task:
    """Import the task `name` whose function is at `reference` (`module:qualname`), as a child process must.

    Raises ConfigurationError when it cannot be found that way.
    """
    check_importable(reference, name)
    module_name, _, qualname = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigurationError(f"task {name!r}: module {module_name!r} cannot be imported: {error}") from error
    found: object = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    for candidate in (found, *vars(module).values()):  # `fast = task(name="fast")(function)` has a name of its own
        if isinstance(candidate, Task) and candidate.name == name and candidate.reference == reference:
            return candidate
    raise ConfigurationError(f"task {name!r} is not an attribute of module {module_name!r} ({reference})")


def check_importable(reference: str, name: str) -> None:
    """Raise ConfigurationError if no other process could import a task of this reference."""
    module_name, _, qualname = reference.partition(":")
    if "<locals>" in qualname:
        raise ConfigurationError(
            f"task {name!r} is defined inside a function ({reference}): a child process cannot find it there; "
            "define it at the top of a module, or use executor='thread'"
        )
    if module_name == "__main__":
        raise ConfigurationError(
            f"task {name!r} is defined in the script that was started: a child process cannot import it from there; "
            "move it to a module of its own, or use executor='thread'"
        )


def add_working_directory() -> None:
    """Make modules in the current directory importable, as `python -m` does. Calling it again changes nothing."""
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"JOBSTREAM_TASKS: module {name!r} cannot be imported: {reason}") from error


def _tasks_of(target: object, where: str) -> list[Task]:
    found = [value for value in vars(target).values() if isinstance(value, Task)] if hasattr(target, "__dict__") else []
    if not found:
        raise ConfigurationError(f"{where} has no tasks: decorate a function with @task")
    return found


def _add(tasks: dict[str, Task], found: Iterable[Task]) -> None:
    for task in found:
        known = tasks.setdefault(task.name, task)
        if known is not task:
            raise ConfigurationError(f"two tasks are named {task.name!r}: {known.reference} and {task.reference}")
