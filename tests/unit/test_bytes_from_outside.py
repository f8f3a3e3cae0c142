"""Whatever bytes a client sends where text is parsed: a value or a refusal, never a mistake of ours."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from jobstream.errors import InvalidParameter
from jobstream.events import parse_event_id
from jobstream_api.preferences import WAIT_MAX_SECONDS, parse_preferences
from jobstream_api.routes.results import idempotency_key

HEADER = st.binary(max_size=300).map(lambda value: value.decode("latin-1"))
PREFERENCE = st.text(alphabet='wait=0123456789;," \\respond-async\t', max_size=60)


@given(st.lists(HEADER | PREFERENCE, max_size=4))
@example(["wait=" + "9" * 5000])
@example(['"' * 999])
@example(["wait=²"])
def test_any_preference_is_understood_or_ignored(headers: list[str]) -> None:
    found = parse_preferences(headers)
    assert found.wait is None or 0 <= found.wait <= WAIT_MAX_SECONDS
    assert all("\n" not in value for value in found.applied(asynchronous=True).values())


@given(st.integers(0, 10**30), st.sampled_from(["wait={}", 'WAIT = "{}"', "x, wait={};y=z", "respond-async,wait={}"]))
def test_a_wait_is_found_wherever_it_stands(seconds: int, form: str) -> None:
    assert parse_preferences([form.format(seconds), "wait=7"]).wait == min(seconds, WAIT_MAX_SECONDS)


@given(HEADER)
@example('""')
@example(" ")
@example('"')
def test_anyidempotency_key_is_a_key_or_refused(value: str) -> None:
    request = Request({"type": "http", "headers": [(b"idempotency-key", value.encode("latin-1"))]})
    with contextlib.suppress(InvalidParameter):
        key = idempotency_key(request)
        assert 1 <= len(key) <= 255
        assert key.isascii()
        assert key.isprintable()


@given(HEADER | st.from_regex(r"[0-9a-f]{8}-[0-9]{1,20}", fullmatch=True))
@settings(max_examples=200)
def test_any_last_event_id_is_an_id_or_none(text: str) -> None:
    found = parse_event_id(text)
    assert found is None or str(found).split("-")[0] == text[:8]
