"""Call: a function of somebody's app and its arguments, as a job carries them: names and JSON, never code.

The side of the app makes one with `Callee.of(function)`, the side of the worker finds the function with `find_callee`.
Both read the function's annotations, by pydantic.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.context import JobContext
from jobstream.files import JobFile
from jobstream.task import Task

BACKGROUND: Final = "background"
"""The task that calls an `async def`, on the worker's event loop."""
BACKGROUND_THREAD: Final = "background-thread"
"""The task that calls a `def`, in a thread."""

CALL_BYTES = 10 << 20
"""What the arguments of a call may have together, as JSON; what is larger is a file."""

NOBODY: Final[dict[str, Any]] = {"not": {}}
"""The announced input schema of the two tasks: nothing fits it. A call comes from an app's code, never over HTTP."""

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class NotCarried(TypeError):
    """A function that no worker could find, or an argument that would not arrive as it is."""


class UnknownFunction(LookupError):
    """There is no such function, or it is not one that may be called."""


class CallSettings(BaseSettings):
    """Which functions may be called in the background."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    background: str = Field(
        "",
        description="Modules and packages, separated by commas, whose functions may be called as background tasks. "
        "A worker without any runs none; an app without any leaves it to the workers.",
    )

    @property
    def background_modules(self) -> tuple[str, ...]:
        """JOBSTREAM_BACKGROUND as a tuple."""
        return tuple(word.strip() for word in self.background.split(",") if word.strip())


class Upload(BaseModel):
    """Where an uploaded file goes: the n-th one of a call's files is for the n-th of these."""

    parameter: str
    place: int | None = None
    """In a list of uploads; None: it is the argument itself."""
    offset: int = 0
    """How far the app had read it."""
    headers: dict[str, str] = {}


class Call(BaseModel):
    """The input of the tasks `background` and `background-thread`."""

    function: str
    """`module:qualified.name`"""
    arguments: dict[str, Any] = {}
    """By parameter, as JSON; those of `*args` are a list, those of `**kwargs` an object."""
    uploads: list[Upload] = []
    files: list[JobFile] = []


@dataclass(frozen=True)
class Callee:
    """A function that can be called by its name."""

    function: Callable[..., Any]
    reference: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Callee:
        """The function as others find it. Raises NotCarried when they could not."""
        return _callee(function)

    @property
    def name(self) -> str:
        """As people write it: `module.qualified.name`."""
        return self.reference.replace(":", ".")

    @property
    def is_async(self) -> bool:
        """Whether it is an `async def`."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def task(self) -> str:
        """Which task calls it."""
        return BACKGROUND if self.is_async else BACKGROUND_THREAD

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def _hints(self) -> dict[str, Any]:
        function = getattr(self.function, "__func__", self.function)
        try:
            return typing.get_type_hints(function, include_extras=True)
        except Exception as error:
            raise NotCarried(f"{self.name}: an annotation cannot be resolved: {error}") from error

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {}

    @cached_property
    def _job_parameter(self) -> str | None:
        """`job: JobContext`, or `job: JobContext | None = None` for callers that check types."""
        for name in self._signature.parameters:
            hint = self._hints.get(name)
            if hint is JobContext or JobContext in typing.get_args(hint):
                return name
        return None

    @cached_property
    def _for_callers(self) -> inspect.Signature:
        kept = [each for name, each in self._signature.parameters.items() if name != self._job_parameter]
        return self._signature.replace(parameters=kept)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter. Raises TypeError for those that do not fit the signature, as a call would."""
        if self._job_parameter is not None and self._job_parameter in kwargs:
            raise NotCarried(f"{self.name}: the worker gives the argument {self._job_parameter!r}")
        try:
            return dict(self._for_callers.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None

    def carry(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as JSON. Raises NotCarried for one that would not arrive equal to what it is."""
        carried: dict[str, Any] = {}
        size = 0
        for name, value in arguments.items():
            text, carried[name] = self._carry(name, value)
            size += len(text)
        if size > CALL_BYTES:
            raise NotCarried(
                f"{self.name}: the arguments have {size:,} bytes, at most {CALL_BYTES:,} are carried; store what is "
                "large, or take it as an UploadFile"
            )
        return carried

    def arrived(self, carried: Mapping[str, Any], others: Mapping[str, Any], job: JobContext | None) -> Arguments:
        """What to call the function with. `others`: uploads, by parameter. Raises NotCarried."""
        bound = inspect.BoundArguments(self._signature, {})
        values: dict[str, Any] = dict(others)
        for name, value in carried.items():
            if name not in self._signature.parameters:
                raise NotCarried(f"{self.name} has no parameter {name!r} any more")
            values[name] = self._arrive(name, pydantic_core.to_json(value))
        if self._job_parameter is not None and job is not None:
            values[self._job_parameter] = job
        bound.arguments = {name: values[name] for name in self._signature.parameters if name in values}
        return Arguments(bound.args, bound.kwargs)

    def _carry(self, name: str, value: Any) -> tuple[bytes, Any]:
        adapter = self._adapter(name, value)
        where = f"{self.name}: the argument {name!r}"
        try:
            value = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise NotCarried(f"{where} is not what its annotation says: {_first(error)}") from None
        try:
            text = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
            same = bool(adapter.validate_json(text) == value)
        except Exception as error:
            said = _first(error) if isinstance(error, pydantic.ValidationError) else str(error).partition("\n")[0]
            raise NotCarried(f"{where} cannot be carried to a worker as JSON: {said}") from None
        if not same:
            raise NotCarried(
                f"{where} would not arrive as it is: a {type(value).__name__} comes out of JSON as something else; "
                "annotate the parameter with the type that it is"
            )
        return text, pydantic_core.from_json(text)

    def _arrive(self, name: str, text: bytes) -> Any:
        try:
            return self._adapter(name, None).validate_json(text)
        except pydantic.ValidationError as error:
            raise NotCarried(f"{self.name}: the argument {name!r} does not fit any more: {_first(error)}") from None

    def _adapter(self, name: str, value: Any) -> TypeAdapter[Any]:
        if (known := self._adapters.get(name)) is not None:
            return known
        parameter = self._signature.parameters[name]
        hint: Any = self._hints.get(name, Any)
        if parameter.default is None:
            hint = typing.Optional[hint]  # noqa: UP045 (a hint may be anything)
        if parameter.kind is parameter.VAR_POSITIONAL:
            hint = tuple[hint, ...]
        elif parameter.kind is parameter.VAR_KEYWORD:
            hint = dict[str, hint]
        try:
            adapter = _adapter_of(hint)
        except Exception as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise NotCarried(
                f"{self.name}: the argument {name!r} cannot be carried to a worker, which is another process: {reason}"
                + (f"; a {type(value).__name__} was given" if value is not None else "")
            ) from None
        self._adapters[name] = adapter
        return adapter


@dataclass(frozen=True)
class Arguments:
    """What a function is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def task_input(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What to submit for a call of a task's function. Raises TypeError, and NotCarried."""
    signature = inspect.signature(task.function)
    kept = [each for name, each in signature.parameters.items() if name != task.job_parameter]
    try:
        given = signature.replace(parameters=kept).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"task {task.name!r}: {error}") from None
    try:
        parsed = task.input_model.model_validate(given[task.input_parameter] if task.input_parameter else given)
        data: dict[str, Any] = parsed.model_dump(mode="json", by_alias=True, round_trip=True, exclude_unset=True)
        task.input_model.model_validate(data)
    except Exception as error:
        said = _first(error) if isinstance(error, pydantic.ValidationError) else str(error).partition("\n")[0]
        raise NotCarried(f"task {task.name!r}: {said}") from None
    return data


def is_allowed(module: str, modules: Collection[str]) -> bool:
    """True for one of the modules, or one inside them."""
    return any(module == allowed or module.startswith(f"{allowed}.") for allowed in modules)


def find_callee(reference: str, modules: Collection[str]) -> Callee:
    """The function at `module:qualname`. Raises UnknownFunction, also for one outside the modules.

    A module's attribute that came from elsewhere (`from os import system`) is none of its functions.
    """
    module_name, _, qualname = reference.partition(":")
    if not is_allowed(module_name, modules):
        raise UnknownFunction(f"{module_name!r} is none of the modules in JOBSTREAM_BACKGROUND")
    try:
        importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownFunction(f"module {module_name!r} cannot be imported: {error}") from error
    try:
        callee = Callee.of(_look_up(module_name, qualname))
    except (AttributeError, NotCarried) as error:
        raise UnknownFunction(f"there is no function {reference}: {error}") from error
    if callee.reference != reference:
        raise UnknownFunction(f"{reference} is really {callee.reference}")
    return callee


@lru_cache(maxsize=1024)
def _callee(function: Callable[..., Any]) -> Callee:
    described = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    owner = getattr(function, "__self__", None)
    if not (inspect.isfunction(function) or (inspect.ismethod(function) and isinstance(owner, type))):
        raise NotCarried(
            f"{described} cannot run in the background: a worker finds functions by their names, and this is "
            + ("a method of one object" if inspect.ismethod(function) else f"a {type(function).__name__}")
            + "; give a function, and what it needs as arguments"
        )
    module, qualname = function.__module__, function.__qualname__
    if "<" in qualname:
        kind = "a lambda" if qualname.endswith("<lambda>") else "defined inside another function"
        raise NotCarried(f"{described} is {kind}, and no worker can find it there; define it at the top of a module")
    if module == "__main__":
        raise NotCarried(
            f"{described} is in the script that was started, which is no module that a worker can import; start the "
            "app as `uvicorn module:app`, or move the function to a module of its own"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise NotCarried(f"{described} is a generator: calling it would do nothing")
    try:
        found = _look_up(module, qualname)
    except AttributeError:
        found = None
    if found != function:
        raise NotCarried(f"{described}: there is another object of that name in its module, which a worker would find")
    return Callee(function, f"{module}:{qualname}")


def _look_up(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _adapter_of(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=_CONFIG)
    except pydantic.PydanticUserError as error:
        if error.code != "type-adapter-config-unused":  # a model has a configuration of its own
            raise
        return TypeAdapter(hint)


def _first(error: pydantic.ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*(str(part) for part in found["loc"]), found["msg"]])
