"""Event ids and bell messages: what is written is read back, and what is not ours is not read."""

from __future__ import annotations

import pytest

from jobstream.events import DURABLE, EventId, JobEvent, parse_event_id, parse_message


@pytest.mark.parametrize("event_id", [EventId("0123abcd", 0), EventId("ffffffff", 999_999_999_999_999)])
def test_an_id_is_read_back(event_id: EventId) -> None:
    assert parse_event_id(str(event_id)) == event_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "0123abcd",
        "0123abcd-",
        "-7",
        "0123ABCD-7",
        "0123abc-7",
        "0123abcde-7",
        "0123abcd--7",
        "0123abcd-7 ",
        "0123abcd-7\n",
        "0123abcd-7-0",
        "0123abcd-٧",
        "0123abcd-1234567890123456",
        "xyzw0123-7",
        "null",
    ],
)
def test_what_is_not_an_id_is_none(text: str) -> None:
    assert parse_event_id(text) is None


def test_a_message_is_read_with_whatever_its_data_holds() -> None:
    assert parse_message(b'12 log 1763712000123 {"message":"a b  c"}') == JobEvent(
        12, "log", 1763712000123, b'{"message":"a b  c"}'
    )
    assert parse_message(b"12 done 1763712000123 ") == JobEvent(12, "done", 1763712000123, b"")


def test_all_but_progress_is_durable() -> None:
    assert {kind for kind in (*DURABLE, "progress") if JobEvent(1, kind, 0, b"").durable} == DURABLE
    assert "progress" not in DURABLE
