"""The events of a job across cuts: where a reader is, when it comes back, and when it gives up. Does no I/O.

Whoever does it opens `path` with `headers` and `timeout`, gives the response to `opened` and its frames to `take`, and
when it has ended, well or badly, waits for `pause` seconds and begins again, until `ended`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import httpx2
from pydantic import JsonValue, ValidationError

from jobstream.batch import Batch
from jobstream.client.calls import JSON, job_path
from jobstream.client.errors import ClientError, Unavailable, Unreachable, checked, unreachable
from jobstream.job import Job, JobProgress

CONNECT_SECONDS = 30.0
SILENCE = 45.0
"""Seconds without a byte after which a stream counts as dead: the service pings every 15 s."""
FIRST_PAUSE = 2.0
"""Seconds before the first attempt to come back, as long as the service has not said another number."""
STOOD = 5.0
"""Seconds after which a stream that ends without an event has been a stream, and no refusal."""


@dataclass(frozen=True)
class Event:
    """One change of a job, as the stream tells it."""

    id: str
    """Opaque; give it to `events(after=…)` to go on from here. Empty before the first durable event."""
    event: str
    """snapshot, status, progress, log, chunk or done."""
    data: JsonValue

    @property
    def version(self) -> int | None:
        """The job's version after this change; None before the first durable event."""
        version = self.id.rpartition("-")[2]
        return int(version) if version.isdecimal() else None

    @property
    def job(self) -> Job | None:
        """The whole job, which `snapshot` and `done` carry; None for the others, and for those of a batch."""
        return None if not self._is_whole or self._is_of_batch else Job.model_validate(self.data)

    @property
    def batch(self) -> Batch | None:
        """The whole batch, which `snapshot` and `done` of its stream carry; None for the others."""
        return Batch.model_validate(self.data) if self._is_whole and self._is_of_batch else None

    @property
    def _is_whole(self) -> bool:
        return self.event in ("snapshot", "done")

    @property
    def _is_of_batch(self) -> bool:
        return isinstance(self.data, dict) and "task" not in self.data

    @property
    def progress(self) -> JobProgress | None:
        """How far the job is, of `progress` events; None for the others."""
        return JobProgress.model_validate(self.data) if self.event == "progress" else None


@dataclass(frozen=True)
class Policy:
    """How a client deals with cuts, in seconds; see `Client`."""

    base_url: str
    patience: float
    max_pause: float


class Following:
    """One reader of one job. `last_id` is where it is; `ended` when there is nothing more to come.

    `met`: the service is known to be there, so that already the first connection is worth some patience. `path`: of
    what is followed, if that is no job.
    """

    def __init__(
        self,
        job_id: str,
        after: str | None,
        policy: Policy,
        *,
        met: bool = False,
        path: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.path = f"{path or job_path(job_id)}/events"
        self.last_id = after or ""
        self.ended = False
        self.mute = False
        """The last connection stood, and said nothing at all: something on the way holds streams back."""
        self._policy, self._clock, self._chance = policy, clock, chance
        self._met = met
        self._open = self._heard = False
        self._opened_at = 0.0
        self._away_since: float | None = None
        self._misses = 0
        self._pause = FIRST_PAUSE

    @property
    def headers(self) -> Mapping[str, str]:
        """What says where to go on."""
        return {"Last-Event-ID": self.last_id} if self.last_id else {}

    def timeout(self, left: float | None = None) -> httpx2.Timeout:
        """For the request, if the reader has `left` seconds (None: for ever)."""
        most = max(left, 0.001) if left is not None else SILENCE
        return httpx2.Timeout(min(CONNECT_SECONDS, most), read=min(SILENCE, most))

    def opened(self, response: httpx2.Response) -> bool:
        """Whether frames follow. An error's body must have been read; raises the tree of `Rejected`."""
        self._heard, self._opened_at = False, self._clock()
        if response.status_code == HTTPStatus.NO_CONTENT:
            self.ended = True
            return False
        checked(response)
        self._met = self._open = True
        return True

    def take(self, frame: httpx2.ServerSentEvent) -> Event | None:
        """The event that a frame is; None for one that only says when to come back."""
        self._heard = True
        if frame.retry is not None:
            self._pause = max(frame.retry, 0) / 1000
        if not frame.data:
            self.last_id = frame.id or self.last_id
            return None
        try:
            data = JSON.validate_json(frame.data)
        except ValidationError as error:
            raise Unreachable(f"what answers at {self._policy.base_url} does not speak this protocol") from error
        self.last_id = frame.id or self.last_id
        self._in_touch()
        self.ended = frame.event == "done"
        return Event(self.last_id, frame.event, data)

    def pause(self, error: Exception | None) -> float:
        """Seconds until it is time to come back, after the connection has ended, by an error or by the service.

        Raises Unreachable or Unavailable when the service was never there, or has been away for too long. A connection
        that was cut after a first word is no absence. One that the service itself ended without an event is, unless it
        had stood for a while: that is how a full or draining process answers.
        """
        if isinstance(error, httpx2.SSEError):
            raise Unreachable(f"what answers at {self._policy.base_url} does not stream events: {error}") from error
        self.mute = self._open and not self._heard and isinstance(error, httpx2.ReadTimeout)
        if self._heard and (error is not None or self._clock() - self._opened_at > STOOD):
            self._in_touch()
        self._heard = self._open = False
        if self._away_since is None:
            self._away_since = self._clock()
        if error is not None and (not self._met or self._clock() - self._away_since > self._policy.patience):
            raise self._reason(error) from error
        if self._clock() - self._away_since > self._policy.patience:
            raise Unreachable(f"{self._policy.base_url} sends everybody away: it is full, or shutting down")
        asked = error.retry_after if isinstance(error, Unavailable) else None
        pause = max(self._pause * 2.0**self._misses, asked or 0.0)
        self._misses = min(self._misses + 1, 20)
        return min(pause * (1 + 0.25 * self._chance()), self._policy.max_pause)

    def _in_touch(self) -> None:
        self._misses, self._away_since = 0, None

    def _reason(self, error: Exception) -> ClientError:
        return error if isinstance(error, ClientError) else unreachable(self._policy.base_url, error)
