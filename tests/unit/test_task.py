"""The `@task` decorator: models from signatures, what may be declared, and what is refused when it is declared."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
import pytest
from pydantic import BaseModel, Field
from pydantic_core import PydanticSerializationError

from jobstream import JobContext, JobFile, Task, task
from jobstream.errors import ConfigurationError, InvalidInput
from jobstream.files import FileStore
from jobstream.outbox import Outbox
from jobstream.task import RESERVED_NAMES, json_pointer


class Order(BaseModel):
    """An input with a shape."""

    item: str
    count: int = Field(1, ge=1)


class Nested(BaseModel):
    """An input that hides an upload."""

    inner: Holder


class Holder(BaseModel):
    """Something around an upload."""

    file: JobFile


class Camel(BaseModel):
    """A result with a name for JSON."""

    total_count: int = Field(serialization_alias="totalCount")


class Unknown:
    """Nothing that pydantic knows."""


@pytest.fixture
def job(tmp_path: Any) -> JobContext:
    return JobContext("j1", task="t", attempt=1, max_attempts=1, outbox=Outbox(lambda: None), files=FileStore(tmp_path))


def pointers(declared: Task, data: object) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        declared.parse_input(data)
    return [error["pointer"] for error in caught.value.errors]


# The input


def test_plain_parameters_become_the_input_model(job: JobContext) -> None:
    @task
    def ship(item: str, count: int = 1, tags: list[str] | None = None) -> None:
        """Send it."""

    assert list(ship.input_schema["properties"]) == ["item", "count", "tags"]
    assert ship.input_schema["required"] == ["item"]
    assert ship.input_model.__name__ == "ShipInput"
    parsed = ship.parse_input({"item": "lamp", "count": "2"})
    assert ship.arguments(parsed, job) == {"item": "lamp", "count": 2, "tags": None}


def test_an_unknown_field_of_plain_parameters_is_refused() -> None:
    @task
    def ship(item: str) -> None: ...

    assert pointers(ship, {"item": "lamp", "itme": "lamp"}) == ["/itme"]


def test_constraints_on_a_parameter_hold() -> None:
    @task
    def ship(count: Annotated[int, Field(ge=1)]) -> None: ...

    assert ship.input_schema["properties"]["count"]["minimum"] == 1
    assert pointers(ship, {"count": 0}) == ["/count"]


def test_a_single_model_parameter_takes_the_whole_input(job: JobContext) -> None:
    @task
    def ship(order: Order) -> None: ...

    assert ship.input_model is Order
    assert ship.arguments(ship.parse_input({"item": "lamp"}), job) == {"order": Order(item="lamp")}
    assert pointers(ship, {"count": 0}) == ["/item", "/count"]


def test_a_model_beside_other_parameters_is_a_field() -> None:
    @task
    def ship(order: Order, express: bool) -> None: ...

    assert pointers(ship, {"order": {"item": "lamp", "count": 0}}) == ["/order/count", "/express"]


def test_a_task_may_take_nothing(job: JobContext) -> None:
    @task
    def tick() -> None: ...

    assert tick.arguments(tick.parse_input({}), job) == {}
    assert pointers(tick, []) == [""]


@pytest.mark.filterwarnings("error")
def test_names_of_model_methods_are_good_names_for_parameters(job: JobContext) -> None:
    @task
    def convert(json: str, schema: str, copy: bool = False) -> None: ...

    arguments = {"json": "{}", "schema": "s", "copy": True}
    assert convert.arguments(convert.parse_input(arguments), job) == arguments


def test_the_job_may_be_asked_for_anywhere(job: JobContext) -> None:
    @task
    def first(job: JobContext, item: str) -> None: ...

    @task
    def last(item: str, context: JobContext) -> None: ...

    @task
    def alone(order: Order, *, job: JobContext) -> None: ...

    assert first.arguments(first.parse_input({"item": "lamp"}), job) == {"item": "lamp", "job": job}
    assert last.arguments(last.parse_input({"item": "lamp"}), job) == {"item": "lamp", "context": job}
    assert alone.arguments(alone.parse_input({"item": "lamp"}), job) == {"order": Order(item="lamp"), "job": job}
    assert "job" not in first.input_schema["properties"]


def test_pointers_escape_what_json_pointers_must() -> None:
    assert json_pointer(["a/b", 0, "c~d"]) == "/a~1b/0/c~0d"
    assert json_pointer([]) == ""


# Uploads


def test_fields_of_files_are_known() -> None:
    @task
    def one(file: JobFile) -> None: ...

    @task
    def many(files: list[JobFile], note: str, cover: JobFile | None = None) -> None: ...

    assert one.file_fields == ("file",)
    assert many.file_fields == ("files", "cover")


def test_files_in_a_model_of_ones_own_are_known() -> None:
    @task
    def store(holder: Holder) -> None: ...

    assert store.file_fields == ("file",)


def test_an_upload_inside_a_field_is_refused() -> None:
    def hide(nested: Nested) -> None: ...

    with pytest.raises(ConfigurationError, match="not of 'Holder' inside it"):
        task(hide)


# The output


def test_the_result_is_validated_and_written_as_json() -> None:
    @task
    def ship() -> Order:
        raise NotImplementedError

    assert ship.dump_result({"item": "lamp"}) == b'{"item":"lamp","count":1}'
    with pytest.raises(pydantic.ValidationError):
        ship.dump_result({"count": 1})


def test_the_result_has_the_names_that_its_schema_promises() -> None:
    @task
    def count() -> Camel:
        raise NotImplementedError

    assert list(count.output_schema["properties"]) == ["totalCount"]
    assert count.dump_result(Camel(total_count=1)) == b'{"totalCount":1}'


def test_without_an_annotation_any_json_is_a_result() -> None:
    @task
    def anything():  # type: ignore[no-untyped-def]
        ...

    assert anything.dump_result({"a": [1, float("nan")]}) == b'{"a":[1,null]}'
    with pytest.raises(PydanticSerializationError):
        anything.dump_result(Unknown())


def test_none_promises_null() -> None:
    @task
    def nothing() -> None: ...

    assert nothing.dump_result(None) == b"null"
    with pytest.raises(pydantic.ValidationError):
        nothing.dump_result(1)


# The declaration


def test_the_executor_follows_from_the_kind_of_function() -> None:
    @task
    async def waits() -> None: ...

    @task
    def works() -> None: ...

    @task(executor="process")
    def burns() -> None: ...

    assert (waits.executor, works.executor, burns.executor) == ("loop", "thread", "process")


def test_the_docstring_describes_the_task() -> None:
    @task
    def ship() -> None:
        """Send it.

        By road.
        """

    @task
    def silent() -> None: ...

    assert (ship.summary, ship.description) == ("Send it.", "Send it.\n\nBy road.")
    assert silent.summary == "silent"


def test_a_task_is_still_its_function() -> None:
    @task(name="twice")
    def double(number: int) -> int:
        return number * 2

    assert double(4) == 8
    assert double.name == "twice"
    assert double.reference == f"{__name__}:test_a_task_is_still_its_function.<locals>.double"


def test_a_task_can_be_a_key() -> None:
    @task
    def tick() -> None: ...

    assert {tick: 1}[tick] == 1


@pytest.mark.parametrize("name", ["Words", "2nd", "a b", "ü", "a" * 65, "-a", "a/b", "a\n"])
def test_a_name_that_is_no_url_segment_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a task's name is"):
        task(name=name)(function)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_name_that_the_service_needs_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="for itself"):
        task(name=name)(function)


def test_functions_are_named_in_lower_case() -> None:
    def Resize() -> None: ...

    assert task(Resize).name == "resize"


async def coroutine() -> None: ...


def function() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def takes_anything(*items: int) -> None: ...


def takes_keywords(**items: int) -> None: ...


def takes_positions(item: int, /) -> None: ...


def takes_two_jobs(one: JobContext, two: JobContext) -> None: ...


def takes_private(_item: int) -> None: ...


def takes_config(model_config: int) -> None: ...


def takes_method(model_dump: int) -> None: ...


def takes_unknown(item: Unknown) -> None: ...


def takes_callable(item: Callable[[int], int]) -> None: ...


def takes_undefined(item: NotThere) -> None: ...  # type: ignore[name-defined] # noqa: F821


def gives_unknown() -> Unknown:
    raise NotImplementedError


@dataclass
class Caller:
    """A callable that is no function."""

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("declared", "options", "reason"),
    [
        (coroutine, {"executor": "thread"}, "needs a plain `def`"),
        (coroutine, {"executor": "process"}, "needs a plain `def`"),
        (function, {"executor": "loop"}, "needs an `async def`"),
        (function, {"executor": "gpu"}, "no executor 'gpu'"),
        (function, {"queue": "No Queue"}, "cannot be a queue's name"),
        (function, {"queue": "health-check"}, "cannot be a queue's name"),
        (function, {"timeout": 0}, "seconds above 0"),
        (function, {"timeout": float("nan")}, "seconds above 0"),
        (function, {"ttl": -1}, "seconds above 0"),
        (generator, {}, "JobContext.chunk"),
        (async_generator, {}, "JobContext.chunk"),
        (takes_anything, {}, "use named parameters"),
        (takes_keywords, {}, "use named parameters"),
        (takes_positions, {}, "use named parameters"),
        (takes_two_jobs, {}, "one JobContext"),
        (takes_private, {}, "cannot be named '_item'"),
        (takes_config, {}, "cannot be named 'model_config'"),
        (takes_method, {}, "model_dump"),
        (takes_unknown, {}, "Unknown"),
        (takes_callable, {}, "JsonSchema"),
        (takes_undefined, {}, "NotThere"),
        (gives_unknown, {}, "Unknown"),
        (Caller(), {"name": "caller"}, "needs a function"),
        (Caller, {"name": "caller"}, "needs a function"),
        (functools.partial(function), {"name": "part"}, "needs a function"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_declaration_that_makes_no_sense_is_refused(
    declared: Callable[..., Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        task(**options)(declared)
    assert "\n" not in caught.value.detail
