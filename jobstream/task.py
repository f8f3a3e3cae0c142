"""The `@task` decorator: a typed function becomes a task with a name, an input model, an output type and limits."""

from __future__ import annotations

import inspect
import json
import math
import re
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar, overload

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from jobstream.context import JobContext
from jobstream.cron import Cron
from jobstream.errors import ConfigurationError, FieldError, InvalidInput
from jobstream.files import FILE_MARK
from jobstream.job import DEFAULT_QUEUE, DEFAULT_TTL, QUEUE_NAME, RESERVED_QUEUES
from jobstream.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")

ExecutorKind = Literal["loop", "thread", "process"]

TASK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
RESERVED_NAMES = frozenset(
    "api batches deliveries docs dashboard events favicon healthz jobs livez metrics openapi problems queues readyz "
    "redoc schedules static tasks webhooks workers".split()
)
"""First path segments the service keeps for itself: a task's name is a URL."""

ONCE = RetryPolicy()
"""No retries: one attempt, and `Retry` is refused."""

DEFAULT_TIMEOUT = 300.0
"""Seconds an attempt may take, unless the task says otherwise."""


@dataclass(frozen=True, eq=False)
class Task:
    """A named function with one typed input and one typed output. Made by `@task`; calling it calls the function."""

    name: str
    function: Callable[..., Any]
    executor: ExecutorKind
    input_model: type[BaseModel]
    output: TypeAdapter[Any]
    job_parameter: str | None
    input_parameter: str | None
    """The parameter that takes the whole input model; None when the model was made from plain parameters."""
    queue: str = DEFAULT_QUEUE
    timeout: float = DEFAULT_TIMEOUT
    ttl: float = DEFAULT_TTL
    accepted_status: Literal[202, 303] = 202
    retry: RetryPolicy = ONCE
    max_running: int | None = None
    """How many of its jobs may run at once, in all workers together."""
    cron: Cron | None = None
    summary: str = ""
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    file_fields: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def reference(self) -> str:
        """`module:qualified.name` of the function: how another process finds it."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def parse_input(self, data: object) -> BaseModel:
        """Validate decoded JSON. Raises `InvalidInput` with a JSON pointer for each error."""
        try:
            return self.input_model.model_validate(data)
        except pydantic.ValidationError as error:
            raise InvalidInput(f"The input of task {self.name!r} is not valid", errors=field_errors(error)) from None

    def arguments(self, parsed: BaseModel, job: JobContext | None) -> dict[str, Any]:
        """The keyword arguments to call the function with. `job`: if there is a `job_parameter`."""
        if self.input_parameter is not None:
            arguments: dict[str, Any] = {self.input_parameter: parsed}
        else:
            arguments = dict(parsed.__dict__)  # of a model that we have made: its fields, and nothing else
        if self.job_parameter is not None:
            arguments[self.job_parameter] = job
        return arguments

    def dump_result(self, value: object) -> bytes:
        """The result as JSON. Raises pydantic.ValidationError or PydanticSerializationError when the value is not
        what the return annotation promises."""
        output = self.output
        return output.serializer.to_json(output.validator.validate_python(value), by_alias=True)


@overload
def task(function: Callable[P, R], /) -> Task: ...
@overload
def task(
    *,
    name: str | None = None,
    executor: ExecutorKind | None = None,
    queue: str = DEFAULT_QUEUE,
    timeout: float = DEFAULT_TIMEOUT,
    ttl: float = DEFAULT_TTL,
    accepted_status: Literal[202, 303] = 202,
    retry: RetryPolicy = ONCE,
    max_running: int | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
) -> Callable[[Callable[P, R]], Task]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    executor: ExecutorKind | None = None,
    queue: str = DEFAULT_QUEUE,
    timeout: float = DEFAULT_TIMEOUT,
    ttl: float = DEFAULT_TTL,
    accepted_status: Literal[202, 303] = 202,
    retry: RetryPolicy = ONCE,
    max_running: int | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
) -> Any:
    """Make a task of a typed function.

    `name`: the task's name and URL, the function's name by default. `executor`: "loop" for `async def`, "thread" for
    `def`, "process" for CPU-bound `def` (default by the function's kind). `queue`: where its jobs wait. `timeout`:
    seconds an attempt may take. `ttl`: seconds the finished record is kept. `accepted_status`: what a submit answers,
    202 or 303. `retry`: whether failed attempts are repeated. `max_running`: how many of its jobs may run at once, in
    all workers together. `cron`: five fields (minute, hour, day, month, weekday) in `timezone`, an IANA name: the task,
    which then needs no input, is run at these times, once in the whole fleet.

    Raises `ConfigurationError` when the declaration makes no sense.
    """

    def make(function: Callable[..., Any]) -> Task:
        if not inspect.isroutine(function):
            raise ConfigurationError(f"@task needs a function, not {function!r}")
        options = {
            "queue": queue,
            "timeout": timeout,
            "ttl": ttl,
            "accepted_status": accepted_status,
            "retry": retry,
            "max_running": max_running,
            "cron": None if cron is None else Cron(cron, timezone),
        }
        return _make_task(function, name=name or function.__name__.lower(), executor=executor, options=options)

    return make if function is None else make(function)


def field_errors(error: pydantic.ValidationError) -> list[FieldError]:
    """Pydantic's errors as JSON pointers and sentences."""
    return [
        FieldError(pointer=json_pointer(item["loc"]), detail=item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def json_pointer(path: typing.Iterable[int | str]) -> str:
    """RFC 6901: `/a/0/b`; the empty string is the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _make_task(
    function: Callable[..., Any], *, name: str, executor: ExecutorKind | None, options: dict[str, Any]
) -> Task:
    where = f"task {name!r} ({function.__module__}.{function.__qualname__})"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{where}: a task returns its result; partial output goes to JobContext.chunk")
    if not TASK_NAME.match(name):
        raise ConfigurationError(f"{where}: a task's name is lower case letters, digits, - and _, from a letter on")
    if name in RESERVED_NAMES:
        raise ConfigurationError(f"{where}: the service keeps /{name} for itself; choose another name")
    if not QUEUE_NAME.match(options["queue"]) or options["queue"] in RESERVED_QUEUES:
        raise ConfigurationError(f"{where}: {options['queue']!r} cannot be a queue's name")
    if not (0 < options["timeout"] < math.inf and 0 < options["ttl"] < math.inf):
        raise ConfigurationError(f"{where}: timeout and ttl are seconds above 0")
    if options["max_running"] is not None and options["max_running"] < 1:
        raise ConfigurationError(f"{where}: max_running is at least 1")
    if executor not in (None, *typing.get_args(ExecutorKind)):
        raise ConfigurationError(f"{where}: there is no executor {executor!r}")
    is_async = inspect.iscoroutinefunction(function)
    kind: ExecutorKind = executor or ("loop" if is_async else "thread")
    if is_async != (kind == "loop"):
        needs = "an `async def` function" if kind == "loop" else "a plain `def` function"
        raise ConfigurationError(f"{where}: executor={kind!r} needs {needs}")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigurationError(f"{where}: an annotation cannot be resolved: {error}") from error
    job_parameter, parameters = _parameters(function, hints, where)
    try:
        input_model, input_parameter = _input_model(name, parameters, hints)
        output: TypeAdapter[Any] = TypeAdapter(hints.get("return", Any))
        input_schema = input_model.model_json_schema(mode="validation")
        output_schema = output.json_schema(mode="serialization")
    except (pydantic.errors.PydanticUserError, NameError, ValueError) as error:  # no schema; a name pydantic keeps
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{where}: {reason}") from error
    if options["cron"] is not None and input_schema.get("required"):
        missing = ", ".join(input_schema["required"])
        raise ConfigurationError(f"{where}: a task with a cron needs no input; give a default to {missing}")
    doc = inspect.getdoc(function) or ""
    return Task(
        name=name,
        function=function,
        executor=kind,
        input_model=input_model,
        output=output,
        job_parameter=job_parameter,
        input_parameter=input_parameter,
        summary=doc.partition("\n")[0].strip() or name,
        description=doc,
        input_schema=input_schema,
        output_schema=output_schema,
        file_fields=_file_fields(input_schema, where),
        **options,
    )


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any], where: str
) -> tuple[str | None, list[inspect.Parameter]]:
    job_parameter: str | None = None
    others: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(f"{where}: {parameter} cannot be filled from JSON; use named parameters")
        if parameter.name.startswith("_") or parameter.name == "model_config":  # pydantic would drop it in silence
            raise ConfigurationError(f"{where}: an input field cannot be named {parameter.name!r}")
        if hints.get(parameter.name) is JobContext:
            if job_parameter is not None:
                raise ConfigurationError(f"{where}: one JobContext parameter is enough")
            job_parameter = parameter.name
        else:
            others.append(parameter)
    return job_parameter, others


def _input_model(
    name: str, parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[type[BaseModel], str | None]:
    if len(parameters) == 1:
        hint = hints.get(parameters[0].name)
        if isinstance(hint, type) and issubclass(hint, BaseModel) and not _is_file(hint):
            return hint, parameters[0].name
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
    }
    title = "".join(part.capitalize() for part in re.split(r"[-_]", name)) + "Input"
    with warnings.catch_warnings():
        # `schema`, `json`, `copy` are good names for a parameter, and nobody calls those methods on this model.
        warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
        return create_model(title, __config__=ConfigDict(extra="forbid"), **fields), None


def _is_file(model: type[BaseModel]) -> bool:
    extra = model.model_config.get("json_schema_extra")
    return isinstance(extra, dict) and FILE_MARK in extra


def _file_fields(schema: dict[str, Any], where: str) -> tuple[str, ...]:
    """The top-level fields that hold uploads. Uploads anywhere deeper could not be sent, so they are refused."""
    marked = {f"#/$defs/{name}" for name, definition in schema.get("$defs", {}).items() if definition.get(FILE_MARK)}
    top = {
        name: definition
        for name, definition in schema.get("properties", {}).items()
        if any(f'"{reference}"' in json.dumps(definition) for reference in marked)
    }
    for name, definition in schema.get("$defs", {}).items():
        if any(f'"{reference}"' in json.dumps(definition) for reference in marked):
            raise ConfigurationError(f"{where}: uploads are fields of the input itself, not of {name!r} inside it")
    return tuple(top)
