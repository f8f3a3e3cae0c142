"""RetryPolicy: how many attempts a task's job gets, how far apart, for which errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from jobstream.errors import ConfigurationError


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed attempt is followed by another one.

    `attempts`: how many there may be, the first included. The n-th retry waits `backoff * factor ** (n - 1)` seconds,
    at most `max_backoff`, give or take the share `jitter`. An exception is tried again when it is an instance of
    `retry_on` and not of `give_up_on`; a timeout counts as TimeoutError, a dead child process as TaskCrashed. Invalid
    input and output are never tried again; a TaskError only when it is `retryable`; `Retry` always is.
    """

    attempts: int = 1
    backoff: float = 1.0
    factor: float = 2.0
    max_backoff: float = 300.0
    jitter: float = 0.1
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError("RetryPolicy: attempts counts the first one, so it is at least 1")
        if not (self.backoff >= 0 and self.factor >= 1 and self.max_backoff >= 0 and 0 <= self.jitter <= 1):
            raise ConfigurationError(
                "RetryPolicy: backoff and max_backoff are seconds from 0 on, factor at least 1, jitter from 0 to 1"
            )

    def admits(self, error: BaseException) -> bool:
        """Whether such an error is worth another attempt."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def delay(self, retry: int, *, chance: Callable[[], float] = random.random) -> float:
        """Seconds before the `retry`-th retry (counted from 1)."""
        exponent = min(retry - 1, 1_000)  # a float ends somewhere
        try:
            wait = self.backoff * self.factor**exponent
        except OverflowError:
            wait = self.max_backoff
        wait = min(wait, self.max_backoff)
        return wait * (1 + self.jitter * (2 * chance() - 1))
