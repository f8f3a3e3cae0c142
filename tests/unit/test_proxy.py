"""The proxy of the tests: what each end looks like from both sides, and that a seed repeats a run."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import End, Fate, Proxy, harmless, trouble


class Echo:
    """A server that gives every byte back, one connection after the other, and notes how each has ended."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.ends: list[str] = []
        self.heard = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while data := connection.recv(1000):
                        self.heard += data
                        connection.sendall(data)
                    self.ends.append("fin")
                except OSError:
                    self.ends.append("rst")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with contextlib.closing(Echo()) as echo:
        yield echo


def talk(proxy: Proxy, data: bytes) -> tuple[bytes, str]:
    """Say it, listen to the end; what came back, and how it ended."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.settimeout(0.5)
        back = b""
        try:
            connection.sendall(data)
            while len(back) < len(data):
                piece = connection.recv(1000)
                if not piece:
                    return back, "fin"
                back += piece
        except TimeoutError:
            return back, "silence"
        except OSError:
            return back, "rst"
        return back, "whole"


DATA = bytes(range(200))


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (End.NONE, "whole"),
        (End.RESET, "rst"),
        (End.CLOSE, "fin"),
        (End.HALF_DOWN, "fin"),
        (End.HALF_UP, "fin"),
        (End.SWALLOW_DOWN, "silence"),
        (End.SWALLOW_UP, "silence"),
        (End.REFUSE, "rst"),
    ],
)
def test_each_end_looks_like_what_it_is(echo: Echo, end: End, seen: str) -> None:
    with Proxy(echo.port, fates=lambda _: Fate(end, after=50, piece=7)) as proxy:
        back, how = talk(proxy, DATA)
        assert how == seen
        assert back == DATA[: len(back)]
        assert proxy.happened[end] == (end != End.NONE)
        if end in (End.CLOSE, End.HALF_DOWN, End.SWALLOW_DOWN):
            assert len(back) == 50
        if end in (End.HALF_UP, End.SWALLOW_UP):
            assert echo.heard == DATA[:50]
        proxy.wait_for(lambda proxy: proxy.open == 0)


def test_all_connections_can_be_cut_at_once(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        proxy.wait_for(lambda proxy: proxy.open == 0)
        assert proxy.happened[End.RESET] == 1


def test_a_server_that_is_not_there_is_a_reset(echo: Echo) -> None:
    echo.close()
    with Proxy(echo.port) as proxy:
        assert talk(proxy, b"x")[1] == "rst"


def test_the_next_connections_can_have_another_target_and_other_fates(echo: Echo) -> None:
    with Proxy(echo.port, fates=lambda _: Fate(End.REFUSE)) as proxy:
        assert talk(proxy, DATA)[1] == "rst"
        proxy.fates = harmless
        assert talk(proxy, DATA)[1] == "whole"


def test_a_seed_repeats_the_fates() -> None:
    def fates(seed: int) -> list[Fate]:
        return [trouble()(random.Random(f"{seed}/{number}")) for number in range(100)]

    assert fates(1) == fates(1)
    assert fates(1) != fates(2)
    assert {fate.end for fate in fates(1)} == {End.RESET, End.CLOSE, End.HALF_DOWN, End.REFUSE}
