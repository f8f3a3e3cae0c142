"""A call is carried there and back, or refused with the name of the argument that would not arrive."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from jobstream.call import Callee, NotCarried, UnknownFunction, find_callee


class Color(enum.Enum):
    RED = "red"


class Animal(pydantic.BaseModel):
    name: str


class Dog(Animal):
    tricks: int


@dataclasses.dataclass
class Point:
    x: int
    where: Path


class Session:
    """Nothing that pydantic knows."""


def take(*args: Any, **kwargs: Any) -> None: ...
def untyped(value): ...  # type: ignore[no-untyped-def]
def typed(
    animal: Animal,
    point: Point,
    /,
    when: datetime.datetime,
    *rest: decimal.Decimal,
    key: uuid.UUID,
    content: bytes = b"",
    color: Color = Color.RED,
    lax: str = None,  # type: ignore[assignment]  # noqa: RUF013 (as people write it)
    **more: datetime.timedelta,
) -> None: ...
def animal(animal: Animal) -> None: ...
def secret(word: pydantic.SecretStr) -> None: ...
def session(session: Session) -> None: ...
def number(value: float) -> None: ...


def test_arguments_of_every_kind_come_back_equal() -> None:
    callee = Callee.of(typed)
    args = (Animal(name="Rex"), Point(1, Path("a/b")), datetime.datetime.now(datetime.UTC), decimal.Decimal("1.10"))
    kwargs: dict[str, Any] = {
        "key": uuid.uuid4(),
        "content": bytes(range(256)),
        "color": Color.RED,
        "lax": None,
        "wait": datetime.timedelta(seconds=2),
    }
    carried = callee.carry(callee.bind(args, kwargs))
    arrived = find_callee(callee.reference, [__name__]).arrived(carried, {}, None)
    assert (arrived.args, arrived.kwargs) == (args, kwargs)


@pytest.mark.parametrize(
    ("function", "value", "why"),
    [
        (untyped, datetime.date(2026, 1, 1), "argument 'value' would not arrive as it is: a date"),
        (untyped, (1, 2), "a tuple comes out of JSON"),
        (untyped, {1: "a"}, "a dict comes out of JSON"),
        (untyped, object(), "argument 'value' cannot be carried"),
        (animal, Dog(name="Rex", tricks=3), "argument 'animal' would not arrive as it is: a Dog"),
        (secret, pydantic.SecretStr("a"), "a SecretStr comes out of JSON"),
        (session, Session(), "argument 'session' cannot be carried to a worker, which is another process"),
        (number, float("nan"), "argument 'value'"),
        (number, "many", "argument 'value' is not what its annotation says"),
        (untyped, "x" * 11_000_000, "at most 10,485,760 are carried"),
    ],
)
def test_what_would_be_lost_on_the_way_is_refused_by_name(
    function: Callable[..., Any], value: object, why: str
) -> None:
    callee = Callee.of(function)
    with pytest.raises(NotCarried, match=why):
        callee.carry(callee.bind([value], {}))


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        f"{__name__}.below:take",
        f"{__name__}:Path.exists",
        f"{__name__}:nothing",
        f"{__name__}:Dog",
        "",
        ":",
    ],
)
def test_only_functions_of_the_modules_that_are_allowed_are_found(reference: str) -> None:
    with pytest.raises(UnknownFunction):
        find_callee(reference, [__name__])


def test_a_module_is_not_allowed_by_the_beginning_of_its_name() -> None:
    assert find_callee(f"{__name__}:take", [__name__.partition(".")[0]]).function is take
    with pytest.raises(UnknownFunction):
        find_callee(f"{__name__}:take", [__name__[:-1]])
