"""Limits of tenants, as they are written and read."""

from __future__ import annotations

import pytest

from jobstream.errors import InvalidParameter
from jobstream.limits import UNLIMITED_RATE, Rate, SubmitLimits, TenantLimits
from jobstream.quota import Quota


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100/m", Rate(100, 60)), ("5/30", Rate(5, 30)), ("7/30s", Rate(7, 30)), ("1/2d", Rate(1, 172_800))],
)
def test_a_rate_is_written_as_people_say_it(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize("text", ["", "0"])
def test_no_rate_is_no_limit(text: str) -> None:
    assert Rate.parse(text) is None


@pytest.mark.parametrize("text", ["x", "5", "5/", "/m", "0/m", "5/0s", "-1/m", "1.5/m", "5/m ", "5/w"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        Rate.parse(text)


@pytest.mark.parametrize(
    "limits",
    [
        TenantLimits(),
        TenantLimits(rate=Rate(5, 60)),
        TenantLimits(rate=UNLIMITED_RATE, running=0, weight=100),
        TenantLimits(running=3),
    ],
)
def test_limits_are_read_as_they_were_written(limits: TenantLimits) -> None:
    assert TenantLimits.decode(limits.encode()) == limits


def test_limits_that_make_no_sense_are_refused() -> None:
    for wrong in ({"running": -1}, {"weight": 0}, {"weight": 101}):
        with pytest.raises(InvalidParameter):
            TenantLimits(**wrong)  # type: ignore[arg-type]


def test_submit_limits_are_numbers_for_the_script() -> None:
    assert SubmitLimits().encode() == "0 0 0"
    assert SubmitLimits(depth=9, rate=Rate(5, 60)).encode() == "9 5 60000"


def test_a_quota_is_told_in_structured_fields() -> None:
    assert Quota.of(5, 60_000, 3, 24_001).headers() == {
        "RateLimit-Policy": '"submit";q=5;w=60',
        "RateLimit": '"submit";r=3;t=25',
    }
