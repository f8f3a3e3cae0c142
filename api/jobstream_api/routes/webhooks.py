"""Webhooks: who is told of the ends of a tenant's jobs, and what became of each message."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.responses import Response

from jobstream.errors import InvalidInput, UnsupportedMediaType
from jobstream.job import WireTime
from jobstream.task import field_errors
from jobstream.webhooks import deliveries, endpoints
from jobstream.webhooks.deliveries import LISTED_MOST, Delivery
from jobstream.webhooks.endpoints import Endpoint
from jobstream.webhooks.signing import callback_secrets, rotate_callback_secret
from jobstream_api.auth.gate import Reader, WebhookKeeper
from jobstream_api.body import is_json, read_body
from jobstream_api.service import Service

Event = Literal["job.succeeded", "job.failed", "job.cancelled"]
ALL_EVENTS: list[Event] = ["job.succeeded", "job.failed", "job.cancelled"]
DISABLED = "disabled by its owner"
OVERLAP_SECONDS = 86_400.0
OVERLAP_MOST = 30 * 86_400.0
BODY_BYTES = 16_384

M = TypeVar("M", bound=BaseModel)

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/@+-]{1,64}$")]
Text = Annotated[str, Field(max_length=200)]
Overlap = Annotated[float, Query(ge=0, le=OVERLAP_MOST, description="Seconds for which the old one signs, too")]
Events = Annotated[list[Event], Field(min_length=1, max_length=3)]


class WebhookInput(BaseModel):
    """A receiver to be."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="http or https; a public address, unless the service allows it", max_length=2048)
    events: Events = Field(ALL_EVENTS, description="Which ends of jobs it is told of")
    task: Word | None = Field(None, description="Only of jobs of this task")
    tag: Word | None = Field(None, description="Only of jobs with this tag")
    description: Text = ""


class WebhookChange(BaseModel):
    """What is to be changed; what is not named stays. `task` and `tag` are taken away by null."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=2048)] | None = None
    events: Events | None = None
    task: Word | None = None
    tag: Word | None = None
    description: Text | None = None
    disabled: bool | None = Field(None, description="true: nothing is sent to it; false: it is used again")


class WebhookView(BaseModel):
    """A registered receiver, without its secret."""

    id: str
    url: str
    events: list[str]
    task: str | None
    tag: str | None
    description: str
    owner: str | None
    created_at: WireTime
    disabled: str | None = Field(description="Why nothing is sent to it; null: it is in use")
    old_secret_until: WireTime | None = Field(description="Until then messages are signed by the secret before, too")


class NewWebhook(WebhookView):
    """The same with its secret, which is shown this once."""

    secret: str = Field(description="`whsec_` and base64, as libraries of Standard Webhooks take it")


class WebhookList(BaseModel):
    """The caller's receivers, the oldest first."""

    webhooks: list[WebhookView]


class WebhookSecrets(BaseModel):
    """What signs messages to a `callback_url` of the caller's jobs: the newest first."""

    secrets: list[str]


class AttemptView(BaseModel):
    """One try to deliver a message."""

    at: WireTime
    status: int | None = Field(description="Of the receiver's answer; null: there was none")
    seconds: float = Field(description="How long it took")
    error: str | None = Field(description="null: delivered")


class DeliveryView(BaseModel):
    """A message to one receiver, and what became of it."""

    id: str
    webhook: str | None = Field(description="The receiver; null: the job's `callback_url`")
    url: str
    job: str | None
    event: str
    message_id: str = Field(description="`webhook-id`")
    status: Literal["pending", "delivered", "failed"]
    attempts: list[AttemptView]
    next_attempt_at: WireTime | None
    created_at: WireTime


class DeliveryList(BaseModel):
    """Messages, the newest first."""

    deliveries: list[DeliveryView]


def add_routes(router: APIRouter, service: Service) -> None:
    """`/webhooks` and `/deliveries` with what is under them, and `GET /jobs/{id}/deliveries`."""
    client = service.client
    tags: list[str | Enum] = ["webhooks"]

    @router.post(
        "/webhooks",
        tags=tags,
        summary="Register a receiver",
        status_code=201,
        responses={201: {"model": NewWebhook}},
        openapi_extra=_body(WebhookInput),
    )
    async def register_webhook(request: Request, caller: WebhookKeeper) -> Response:
        wanted = await _read(request, WebhookInput)
        await service.targets.check(wanted.url, option="url")
        made = await endpoints.register(client, owner=caller.tenant, fields=wanted.model_dump())
        return _secret(made, status=201, location=f"{service.prefix}/webhooks/{made.id}")

    @router.get("/webhooks", tags=tags, summary="List receivers")
    async def list_webhooks(caller: Reader) -> WebhookList:
        found = await endpoints.find_endpoints(client, owner=caller.sees)
        return WebhookList(webhooks=[_view(endpoint) for endpoint in found])

    @router.get("/webhooks/secret", tags=tags, summary="What signs messages to a `callback_url`")
    async def callback_secret(caller: WebhookKeeper, response: Response) -> WebhookSecrets:
        response.headers["Cache-Control"] = "no-store"
        secrets = await callback_secrets(client, service.settings.webhook_secrets, caller.tenant)
        return WebhookSecrets(secrets=list(secrets))

    @router.post(
        "/webhooks/secret/rotate", tags=tags, summary="Another secret for a `callback_url`; both sign for a while"
    )
    async def rotate_callbacks(
        caller: WebhookKeeper, response: Response, overlap: Overlap = OVERLAP_SECONDS
    ) -> WebhookSecrets:
        await rotate_callback_secret(client, caller.tenant, overlap=overlap)
        return await callback_secret(caller, response)

    @router.get("/deliveries/{delivery_id}", tags=tags, summary="One message and its attempts")
    async def delivery(delivery_id: str, caller: Reader) -> DeliveryView:
        return _delivery(await deliveries.get_delivery(client, delivery_id, owner=caller.sees))

    @router.post("/deliveries/{delivery_id}/redeliver", tags=tags, summary="Deliver it once more, now", status_code=202)
    async def redeliver(delivery_id: str, caller: WebhookKeeper) -> DeliveryView:
        found = await deliveries.get_delivery(client, delivery_id, owner=caller.sees)
        return _delivery(await deliveries.redeliver(client, found))

    @router.get("/webhooks/{webhook_id}", tags=tags, summary="One receiver")
    async def webhook(webhook_id: str, caller: Reader) -> WebhookView:
        return _view(await endpoints.get_endpoint(client, webhook_id, owner=caller.sees))

    @router.patch(
        "/webhooks/{webhook_id}",
        tags=tags,
        summary="Change a receiver, disable it, or use it again",
        openapi_extra=_body(WebhookChange),
    )
    async def change_webhook(webhook_id: str, request: Request, caller: WebhookKeeper) -> WebhookView:
        wanted = await _read(request, WebhookChange)
        found = await endpoints.get_endpoint(client, webhook_id, owner=caller.sees)
        nullable = {"task", "tag"}
        fields = {
            name: value
            for name, value in wanted.model_dump(exclude_unset=True).items()
            if value is not None or name in nullable
        }
        if "url" in fields:
            await service.targets.check(fields["url"], option="url")
        if "disabled" in fields:
            fields["disabled"] = DISABLED if fields["disabled"] else None
        await endpoints.change(client, found, fields)
        return _view(await endpoints.get_endpoint(client, webhook_id, owner=caller.sees))

    @router.delete("/webhooks/{webhook_id}", tags=tags, summary="Forget a receiver", status_code=204)
    async def delete_webhook(webhook_id: str, caller: WebhookKeeper) -> Response:
        await endpoints.delete(client, await endpoints.get_endpoint(client, webhook_id, owner=caller.sees))
        return Response(status_code=204)

    @router.post(
        "/webhooks/{webhook_id}/rotate",
        tags=tags,
        summary="Another secret; both sign for a while",
        responses={200: {"model": NewWebhook}},
    )
    async def rotate_secret(webhook_id: str, caller: WebhookKeeper, overlap: Overlap = OVERLAP_SECONDS) -> Response:
        found = await endpoints.get_endpoint(client, webhook_id, owner=caller.sees)
        await endpoints.rotate(client, found, overlap=overlap)
        return _secret(await endpoints.get_endpoint(client, webhook_id, owner=caller.sees), status=200)

    @router.post("/webhooks/{webhook_id}/test", tags=tags, summary="Send it a message to try it out", status_code=202)
    async def test_webhook(webhook_id: str, caller: WebhookKeeper) -> DeliveryView:
        found = await endpoints.get_endpoint(client, webhook_id, owner=caller.sees)
        return _delivery(await deliveries.send_test(client, found))

    @router.get("/webhooks/{webhook_id}/deliveries", tags=tags, summary="Its messages, the newest first")
    async def deliveries_of_webhook(
        webhook_id: str, caller: Reader, limit: Annotated[int, Query(ge=1, le=LISTED_MOST)] = 50
    ) -> DeliveryList:
        found = await endpoints.get_endpoint(client, webhook_id, owner=caller.sees)
        return _deliveries(await deliveries.deliveries_to(client, found.id, limit=limit))

    @router.get("/jobs/{job_id}/deliveries", tags=tags, summary="What was told of the job's end, and to whom")
    async def deliveries_of_job(job_id: str, caller: Reader) -> DeliveryList:
        await service.queue.get(job_id, owner=caller.sees)
        return _deliveries(await deliveries.deliveries_of(client, job_id))


async def _read(request: Request, model: type[M]) -> M:
    """The body. Raises UnsupportedMediaType, PayloadTooLarge, InvalidInput with a pointer per error."""
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if not is_json(media_type.decode("latin-1").lower()):
        raise UnsupportedMediaType("Send application/json")
    body = await read_body(request, at_most=BODY_BYTES)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = field_errors(error)
        raise InvalidInput(f"{errors[0]['detail']} (at {errors[0]['pointer'] or 'the body'})", errors=errors) from None


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _view(endpoint: Endpoint) -> WebhookView:
    return WebhookView(
        id=endpoint.id,
        url=endpoint.url,
        events=list(endpoint.events),
        task=endpoint.task,
        tag=endpoint.tag,
        description=endpoint.description,
        owner=endpoint.owner,
        created_at=endpoint.created_at,
        disabled=endpoint.disabled,
        old_secret_until=endpoint.old_until,
    )


def _secret(endpoint: Endpoint, *, status: int, location: str = "") -> Response:
    view = NewWebhook(**dict(_view(endpoint)), secret=endpoint.secret)
    headers = {"Cache-Control": "no-store"} | ({"Location": location} if location else {})
    return Response(view.model_dump_json(), status_code=status, media_type="application/json", headers=headers)


def _deliveries(found: Sequence[Delivery]) -> DeliveryList:
    return DeliveryList(deliveries=[_delivery(each) for each in found])


def _delivery(found: Delivery) -> DeliveryView:
    return DeliveryView(
        id=found.id,
        webhook=found.webhook,
        url=found.url,
        job=found.job,
        event=found.event,
        message_id=found.message_id,
        status=found.state,
        attempts=[
            AttemptView(at=each.at, status=each.status, seconds=each.seconds, error=each.error)
            for each in found.attempts
        ],
        next_attempt_at=found.next_at,
        created_at=found.created_at,
    )
