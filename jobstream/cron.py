"""Cron: five fields and a time zone, and the ticks they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobstream.errors import ConfigurationError


@dataclass(frozen=True)
class Cron:
    """`expression`: minute, hour, day of the month, month, day of the week, as in Debian's cron; `timezone`: IANA name.

    A tick that a change to summer time skips comes right after the gap; one that comes twice is taken once (fixed
    times) or twice (`*` and `*/n` in the hour), as Debian's cron does. Raises ConfigurationError.
    """

    expression: str
    timezone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.timezone))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigurationError(f"there is no time zone {self.timezone!r}") from None
        if len(self.expression.split()) != 5:  # CronSim takes seconds as a sixth
            raise ConfigurationError(f"{self.expression!r} is no cron expression: it needs five fields")
        try:
            next(self._ticks(datetime.now(UTC)))
        except CronSimError as error:
            raise ConfigurationError(f"{self.expression!r} is no cron expression: {error}") from None
        except StopIteration:
            raise ConfigurationError(f"{self.expression!r} names no time in the next 50 years") from None

    def next_tick(self, after: datetime) -> datetime:
        """The first tick after an aware time, in UTC."""
        # In the hour that comes twice, CronSim names ticks of the first one also while it is the second.
        ticks = (tick.astimezone(UTC) for tick in self._ticks(after))
        return next(tick for tick in ticks if tick > after)

    def _ticks(self, after: datetime) -> Iterator[datetime]:
        return CronSim(self.expression, after.astimezone(self._zone))
