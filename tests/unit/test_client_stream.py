"""When a stream comes back and when it gives up: the rules, by a clock that the tests turn."""

from __future__ import annotations

import httpx2
import pytest

from jobstream.client import Problem, Unavailable, Unreachable
from jobstream.client.stream import STOOD, Following, Policy

CUT = httpx2.ReadError("cut")
LOG = httpx2.ServerSentEvent(event="log", data='"x"', id="e-1")
RETRY = httpx2.ServerSentEvent(retry=2000)


class Line:
    """A `Following` whose connections last as long as the test says."""

    def __init__(self, *, met: bool = False, patience: float = 60.0, max_pause: float = 30.0) -> None:
        self.now = 1000.0
        policy = Policy("http://there", patience, max_pause)
        self.following = Following("j1", None, policy, met=met, clock=lambda: self.now, chance=lambda: 0.0)

    def connect(self, *frames: httpx2.ServerSentEvent, lasts: float = 0.0) -> None:
        self.following.opened(httpx2.Response(200))
        for frame in frames:
            self.following.take(frame)
        self.now += lasts

    def pause(self, error: Exception | None = CUT) -> float:
        pause = self.following.pause(error)
        self.now += pause
        return pause


def test_the_pause_is_what_the_service_asks_for_and_doubles_while_it_is_away() -> None:
    line = Line()
    line.connect(httpx2.ServerSentEvent(retry=1500), LOG)
    assert [line.pause() for _ in range(4)] == [1.5, 3.0, 6.0, 12.0]
    line.connect(LOG)
    assert line.pause() == 1.5


def test_no_pause_is_longer_than_the_client_allows() -> None:
    line = Line(max_pause=5)
    line.connect(RETRY, LOG)
    assert [line.pause() for _ in range(4)] == [2.0, 4.0, 5.0, 5.0]


def test_a_pause_is_spread_but_never_shorter_than_asked_for() -> None:
    following = Following("j1", None, Policy("http://there", 60, 30), met=True, chance=lambda: 1.0)
    following.take(RETRY)
    assert following.pause(CUT) == 2.5


def test_retry_after_of_a_refusal_counts() -> None:
    line = Line(met=True)
    busy = Unavailable(Problem(status=503), retry_after=7.0)
    assert line.pause(busy) == 7.0


def test_patience_is_counted_from_the_last_contact() -> None:
    line = Line(patience=10)
    line.connect(RETRY, LOG, lasts=1000)
    assert [line.pause() for _ in range(3)] == [2.0, 4.0, 8.0]
    with pytest.raises(Unreachable, match="cut"):
        line.pause()


def test_a_silent_job_is_followed_over_a_line_that_is_cut_for_ever() -> None:
    line = Line(patience=10)
    for _ in range(100):
        line.connect(RETRY)
        assert line.pause() == 2.0


def test_a_silent_job_is_followed_across_any_number_of_deploys() -> None:
    line = Line(patience=10)
    for _ in range(100):
        line.connect(RETRY, lasts=STOOD + 1)
        assert line.pause(None) == 2.0


def test_a_service_that_sends_everybody_away_is_given_up() -> None:
    line = Line(patience=10)
    for _ in range(3):
        line.connect(RETRY)
        line.pause(None)
    with pytest.raises(Unreachable, match="full, or shutting down"):
        line.pause(None)


def test_silence_from_the_beginning_is_an_absence() -> None:
    line = Line(patience=90)
    line.connect(lasts=45)
    line.pause(httpx2.ReadTimeout("silence"))
    line.connect(lasts=45)
    line.pause(httpx2.ReadTimeout("silence"))
    line.connect(lasts=45)
    with pytest.raises(Unreachable, match="silence"):
        line.pause(httpx2.ReadTimeout("silence"))


def test_a_service_that_was_never_met_is_given_up_at_once() -> None:
    with pytest.raises(Unreachable):
        Line().pause(httpx2.ConnectError("refused"))
    assert Line(met=True).pause(httpx2.ConnectError("refused")) == 2.0


def test_nothing_asked_of_the_service_can_make_a_pause_negative() -> None:
    line = Line()
    line.connect(httpx2.ServerSentEvent(retry=-5000), LOG)
    assert line.pause() == 0.0


def test_a_stream_that_never_says_a_word_is_mute_to_whoever_can_do_without() -> None:
    line = Line()
    line.connect()
    assert not line.following.mute
    line.pause(httpx2.ReadTimeout("silence"))
    assert line.following.mute
    line.connect(RETRY)
    line.pause(httpx2.ReadTimeout("silence"))
    assert not line.following.mute
