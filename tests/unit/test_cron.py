"""Cron: what is an expression, and the ticks that it names, also on the two days a year that are no ordinary ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobstream.cron import Cron
from jobstream.errors import ConfigurationError

BEFORE_SUMMER = datetime(2026, 3, 28, 22, tzinfo=UTC)
"""Berlin, 23:00; in the following night the clock goes from 02:00 to 03:00, at 01:00 UTC."""
BEFORE_WINTER = datetime(2026, 10, 24, 22, tzinfo=UTC)
"""Berlin, midnight; in this night the hour from 02:00 to 03:00 comes twice, from 00:00 and from 01:00 UTC on."""


def ticks(cron: Cron, start: datetime, hours: float) -> list[str]:
    """The ticks of some hours, one after the other, as UTC."""
    found: list[str] = []
    tick = cron.next_tick(start)
    while tick <= start + timedelta(hours=hours):
        assert tick.tzinfo is UTC
        found.append(f"{tick:%d %H:%M}")
        tick = cron.next_tick(tick)
    return found


@pytest.mark.parametrize(
    ("expression", "after", "tick"),
    [
        ("*/5 * * * *", "2026-11-21T06:40", "2026-11-21T06:45"),
        ("*/5 * * * *", "2026-11-21T06:39:59.999999", "2026-11-21T06:40"),
        ("*/5 * * * *", "2026-11-21T06:40:00.000001", "2026-11-21T06:45"),
        ("30 4 1 * *", "2026-11-21", "2026-12-01T04:30"),
        ("0 0 29 2 *", "2026-11-21", "2028-02-29"),
        ("0 9 * * MON-FRI", "2026-11-21", "2026-11-23T09:00"),
        ("0 0 1 * 1", "2026-11-21", "2026-11-23"),  # the first of the month, or a Monday
    ],
)
def test_the_next_tick_is_the_first_one_after_a_time(expression: str, after: str, tick: str) -> None:
    def utc(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    assert Cron(expression).next_tick(utc(after)) == utc(tick)


def test_a_tick_is_local_time_in_the_zone_of_the_cron() -> None:
    cron = Cron("30 4 * * *", "Europe/Berlin")
    assert cron.next_tick(datetime(2026, 1, 10, tzinfo=UTC)) == datetime(2026, 1, 10, 3, 30, tzinfo=UTC)
    assert cron.next_tick(datetime(2026, 7, 10, tzinfo=UTC)) == datetime(2026, 7, 10, 2, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["29 01:00"]),  # skipped, so right after the gap
        ("15,45 2 * * *", ["29 01:00"]),  # the same moment once
        ("0 3 * * *", ["29 01:00"]),
        ("30 1 * * *", ["29 00:30"]),
        ("30 3 * * *", ["29 01:30"]),
        ("0 * * * *", ["28 23:00", "29 00:00", "29 01:00", "29 02:00"]),
        (
            "*/30 * * * *",
            ["28 22:30", "28 23:00", "28 23:30", "29 00:00", "29 00:30", "29 01:00", "29 01:30", "29 02:00"],
        ),
    ],
)
def test_when_summer_time_begins_no_tick_is_lost_and_none_comes_twice(expression: str, expected: list[str]) -> None:
    assert ticks(Cron(expression, "Europe/Berlin"), BEFORE_SUMMER, 4) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["25 00:30"]),  # in the first of the two hours, not in the second
        ("15,45 2 * * *", ["25 00:15", "25 00:45"]),
        ("0 3 * * *", ["25 02:00"]),
        ("30 1 * * *", ["24 23:30"]),
        ("0 * * * *", ["24 23:00", "25 00:00", "25 01:00", "25 02:00"]),
    ],
)
def test_when_summer_time_ends_a_fixed_time_comes_once(expression: str, expected: list[str]) -> None:
    assert ticks(Cron(expression, "Europe/Berlin"), BEFORE_WINTER, 4) == expected


@pytest.mark.parametrize("start", [BEFORE_SUMMER, BEFORE_WINTER])
@pytest.mark.parametrize("expression", ["30 2 * * *", "15,45 2 * * *", "0 2,3 * * *", "*/20 * * * *", "30 */2 * * *"])
def test_the_next_tick_lies_ahead_at_every_minute_of_these_nights(expression: str, start: datetime) -> None:
    cron = Cron(expression, "Europe/Berlin")
    for minute in range(6 * 60):
        after = start + timedelta(minutes=minute)
        tick = cron.next_tick(after)
        assert tick > after
        assert tick == cron.next_tick(tick - timedelta(seconds=1)), "a worker that looks later finds the same one"


@pytest.mark.parametrize(
    ("expression", "timezone", "message"),
    [
        ("* * * *", "UTC", "five fields"),
        ("0 * * * * *", "UTC", "five fields"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("every day", "UTC", "five fields"),
        ("", "UTC", "five fields"),
        ("0 0 31 2 *", "UTC", "31 2"),
        ("0 0 * * *", "Europe/Atlantis", "no time zone 'Europe/Atlantis'"),
        ("0 0 * * *", "../etc/passwd", "no time zone"),
        ("0 0 * * *", "", "no time zone"),
    ],
)
def test_what_is_no_cron_is_refused_where_it_is_written(expression: str, timezone: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Cron(expression, timezone)
