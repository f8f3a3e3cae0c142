"""The courier: takes what is to be told from the mailbag, and delivers it: a task that every worker has."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx2
from pydantic import BaseModel
from redis.asyncio import Redis

from jobstream import keys
from jobstream.context import JobContext
from jobstream.egress import AddressRefused, EgressPolicy
from jobstream.errors import DeliveryNotFound, Retry, TaskError, WebhookNotFound
from jobstream.retry import RetryPolicy
from jobstream.scripts import Script
from jobstream.task import Task, task
from jobstream.traces import current
from jobstream.webhooks import deliveries, endpoints
from jobstream.webhooks.deliveries import DELIVERY_TASK, KEPT_SECONDS, Attempt, Delivery, State, get_delivery
from jobstream.webhooks.endpoints import TEST_EVENT, Endpoint
from jobstream.webhooks.signing import callback_secrets, signed_headers
from jobstream_workers.egress import guarded_client
from jobstream_workers.meter import Meter
from jobstream_workers.runner import Postponed
from jobstream_workers.settings import MAX_DELAY_SECONDS, WorkerSettings

logger = logging.getLogger("jobstream.webhooks")

JITTER = 0.1
"""By how large a share a delay is prolonged at most: receivers that came back are not run over by all at once."""

ANSWER_BYTES = 16_384
"""What is read of an answer, so that the connection can be used again. It says nothing but its status."""

SLOW_SECONDS = 3660
"""For so long a receiver that did not answer in time is taken for slow, unless it answers: for all but the last hour it
shares a lane with all others of its kind, then it is tried with one delivery at a time."""

SLOW_SHARE = 5
"""That lane is as wide as this part of a worker's slots."""

GONE = "the receiver answered 410"

_enter = Script("enter_lane")
_leave = Script("leave_lane")


class Delivered(BaseModel):
    """The result of a delivery's job."""

    delivered: bool
    status: int | None


class Courier:
    """One for each worker. Use as `async with`: it holds connections to receivers."""

    def __init__(
        self, client: Redis, settings: WorkerSettings, meter: Meter, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._client = client
        self._meter = meter
        self._settings = settings
        self._chance = chance
        self._base = str(settings.public_url or "").rstrip("/")
        self._policy = EgressPolicy.parse(settings.webhook_allow)
        self._http = guarded_client(self._policy, timeout=settings.webhook_timeout, connections=settings.webhook_slots)
        self.task = self._task()

    async def aclose(self) -> None:
        """Close the connections to receivers."""
        await self._http.aclose()

    async def collect(self) -> None:
        """Empty the mailbag, unless another worker is at it."""
        while await deliveries.collect(self._client, base=self._base):
            pass

    def _task(self) -> Task:
        # The schedule counts the attempts in the delivery's own log; these are for what is no attempt at all.
        policy = RetryPolicy(attempts=2 * len(self._settings.webhook_delays) + 10)

        @task(name=DELIVERY_TASK, timeout=self._settings.webhook_timeout + 60, ttl=KEPT_SECONDS, retry=policy)
        async def deliver(job: JobContext, delivery: str) -> Delivered:
            """Deliver a webhook, or come back later."""
            return await self._deliver(job, delivery)

        return deliver

    async def _deliver(self, job: JobContext, delivery_id: str) -> Delivered:
        try:
            delivery = await get_delivery(self._client, delivery_id, owner=None)
        except DeliveryNotFound as error:
            raise TaskError("The delivery has expired", status=410, code="delivery-expired") from error
        if delivery.run != job.id or delivery.state == "delivered":
            return Delivered(delivered=False, status=None)  # somebody asked for it again, and another job does it
        most, slow = self._settings.webhook_receiver_slots, max(1, self._settings.webhook_slots // SLOW_SHARE)
        takes_ms = round((self._settings.webhook_timeout + 10) * 1000)
        name, width, entered = await _enter(self._client, args=[job.id, delivery.receiver, most, takes_ms, slow])
        lane = name.decode()
        if not entered:
            raise Postponed(lane, most=width)
        try:
            return await self._attempt(delivery)
        finally:
            await asyncio.shield(_leave(self._client, args=[job.id, lane]))

    async def _attempt(self, delivery: Delivery) -> Delivered:
        url, endpoint = delivery.url, await self._endpoint(delivery)
        if endpoint is not None:
            url = endpoint.url
        began, at = time.monotonic(), datetime.now(UTC)
        status, after, error, final = None, 0.0, None, False
        try:
            async with asyncio.timeout(self._settings.webhook_timeout):
                status, after = await self._post(url, delivery, await self._secrets(delivery, endpoint))
        except TimeoutError:
            await self._client.set(keys.SLOW_RECEIVER + delivery.receiver, 1, ex=SLOW_SECONDS)
            error = f"no answer in {self._settings.webhook_timeout:g} s"
        except AddressRefused as refused:
            error, final = refused.detail, True
        except (httpx2.HTTPError, httpx2.InvalidURL) as failed:
            error = str(failed) or type(failed).__name__
        if status is not None and not 200 <= status < 300:
            error = f"the receiver answered {status}"
        tried = Attempt(at=at, status=status, seconds=time.monotonic() - began, error=error)
        if error is None:
            await self._client.delete(keys.SLOW_RECEIVER + delivery.receiver)
            self._meter.delivered("delivered", tried.seconds)
            await self._note(delivery, tried, "delivered")
            return Delivered(delivered=True, status=status)
        if status == 410:
            final = True
            if endpoint is not None:
                await endpoints.change(self._client, endpoint, {"disabled": GONE})
        delays = self._settings.webhook_delays
        if final or delivery.tries >= len(delays):
            self._meter.delivered("failed", tried.seconds)
            await self._note(delivery, tried, "failed")
            raise TaskError(f"Not delivered: {error}", status=502, code="not-delivered")
        self._meter.delivered("retried", tried.seconds)
        wait = max(delays[delivery.tries] * (1 + JITTER * self._chance()), min(after, MAX_DELAY_SECONDS))
        await self._note(delivery, tried, "pending", next_at=at + timedelta(seconds=wait))
        raise Retry(error, after=wait)

    async def _note(self, delivery: Delivery, tried: Attempt, state: State, *, next_at: datetime | None = None) -> None:
        await deliveries.note_attempt(self._client, delivery, tried, state=state, next_at=next_at)

    async def _endpoint(self, delivery: Delivery) -> Endpoint | None:
        """The endpoint as it is now. Raises TaskError when nothing is to be sent to it any more."""
        if delivery.webhook is None:
            return None
        why = None
        try:
            endpoint = await endpoints.get_endpoint(self._client, delivery.webhook, owner=None)
        except WebhookNotFound:
            why = "the endpoint was deleted"
        else:
            if endpoint.disabled is None or delivery.event == TEST_EVENT:
                return endpoint
            why = f"the endpoint is disabled: {endpoint.disabled}"
        await self._note(delivery, Attempt(at=datetime.now(UTC), status=None, seconds=0.0, error=why), "failed")
        raise TaskError(f"Not delivered: {why}", status=502, code="not-delivered")

    async def _secrets(self, delivery: Delivery, endpoint: Endpoint | None) -> tuple[str, ...]:
        if endpoint is not None:
            return endpoint.secrets(datetime.now(UTC))
        return await callback_secrets(self._client, self._settings.webhook_secrets, delivery.owner)

    async def _post(self, url: str, delivery: Delivery, using: tuple[str, ...]) -> tuple[int, float]:
        """The status of the answer, and how many seconds it asks us to wait."""
        headers = signed_headers(delivery.message_id, int(time.time()), delivery.body, using)
        headers |= {"Content-Type": "application/json", "User-Agent": "jobstream", "Accept-Encoding": "identity"}
        headers |= current()
        async with self._http.stream("POST", url, content=delivery.body, headers=headers) as response:
            size = 0
            async for piece in response.aiter_raw():
                size += len(piece)
                if size > ANSWER_BYTES:
                    break
            return response.status_code, retry_after(response.headers.get("retry-after", ""))


def retry_after(text: str, *, now: Callable[[], float] = time.time) -> float:
    """Seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), a number or a date; 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, OverflowError):
        return 0.0
