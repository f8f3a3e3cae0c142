"""Where Redis is: URLs that are understood, secrets that are not shown, errors that pass by themselves."""

from __future__ import annotations

import pytest
from redis import exceptions

from jobstream.errors import ConfigurationError
from jobstream.redis import RedisSettings, UrlSource, is_unavailable, masked


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/",
        "redis://:secret@localhost:6379/3",
        "rediss://user:p%40s%3As%2Fw%23@host:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "unix://user:secret@/run/redis.sock",
        "valkey://localhost:6379/0",
        "valkeys://localhost:6379/0",
    ],
)
def test_a_url_is_understood(url: str) -> None:
    UrlSource(url)


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://localhost", "redis://host:port/0", "redis://h:1/notadb?db=x"]
)
def test_a_url_that_is_not_understood_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        UrlSource(url.replace("//", "//user:secret@"))
    assert "secret" not in str(caught.value)
    assert "JOBSTREAM_REDIS_URL" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:p%40ss@host:6379/0", "redis://host:6379/0"),
        ("unix://:secret@/run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("redis://host", "redis://host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert "secret" not in UrlSource(url).describe()


def test_without_a_url_the_error_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="jobstream dev"):
        UrlSource.from_settings(RedisSettings(_env_file=None))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (exceptions.ConnectionError("refused"), True),
        (exceptions.TimeoutError("slow"), True),
        (exceptions.BusyLoadingError("loading"), True),
        (exceptions.ReadOnlyError("replica"), True),
        (exceptions.OutOfMemoryError("full"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file"), True),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (exceptions.ResponseError("OOM command not allowed, script: abc"), True),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), False),
        (exceptions.ResponseError("user script mentions OOM somewhere"), False),
        (exceptions.AuthenticationError("wrong password"), False),
        (exceptions.NoPermissionError("NOPERM"), False),
        (ValueError("OOM"), False),
    ],
)
def test_errors_that_pass_by_themselves_are_known(error: Exception, passes: bool) -> None:
    assert is_unavailable(error) is passes
