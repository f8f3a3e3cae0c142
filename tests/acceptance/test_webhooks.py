"""Webhooks, from a submit to a receiver on a real port: signed, tried again, bounded, and told to nobody else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.acceptance.service import ROOT, Service, running
from tests.acceptance.wire import Json, Puppet, done, pointers, problem, submit
from tests.receiver import Received, Receiver, answer, receiving

SETTINGS = {
    "JOBSTREAM_WEBHOOK_ALLOW": "127.0.0.1",
    "JOBSTREAM_WEBHOOK_RETRIES": "0.05,0.05,0.05",
    "JOBSTREAM_WEBHOOK_RECEIVER_SLOTS": "2",
    "JOBSTREAM_PUBLIC_URL": "https://jobs.example.com/background",
}


@pytest.fixture(scope="module", params=["redis", "fakeredis"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that may call loopback addresses, and does not wait for hours."""
    url = request.getfixturevalue("service_redis").url if request.param == "redis" else None
    with running(tmp_path_factory.mktemp("webhooks"), redis_url=url, **SETTINGS) as service:
        yield service


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def register(http: httpx2.AsyncClient, url: str, **fields: object) -> Json:
    response = await http.post("/webhooks", json={"url": url, **fields})
    assert response.status_code == 201, response.text
    made: Json = response.json()
    return made


@pytest.fixture
async def endpoint(http: httpx2.AsyncClient, receiver: Receiver) -> AsyncIterator[Json]:
    """A registered receiver, until the test ends."""
    made = await register(http, f"{receiver.url}/hook")
    yield made
    assert (await http.delete(f"/webhooks/{made['id']}")).status_code == 204


def verify(received: Received, secret: str) -> Json:
    """The message, as the specification's own library lets it pass."""
    message: Json = Webhook(secret).verify(received.body, received.headers)
    assert received.headers["content-type"] == "application/json"
    return message


async def settled(http: httpx2.AsyncClient, path: str) -> Json:
    """The delivery at the path, at its end: what the receiver has seen is written a moment later."""
    async with asyncio.timeout(20):
        while (found := (await http.get(path)).json())["status"] == "pending":  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)
    delivery: Json = found
    return delivery


async def delivery_of(http: httpx2.AsyncClient, job: Json) -> Json:
    """The job's only delivery, at its end."""
    async with asyncio.timeout(20):
        path = f"/jobs/{job['id']}/deliveries"
        while not (found := (await http.get(path)).json()["deliveries"]):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)
    assert len(found) == 1
    return await settled(http, f"/deliveries/{found[0]['id']}")


async def test_the_end_of_a_job_is_told_to_a_registered_receiver(
    http: httpx2.AsyncClient, receiver: Receiver, endpoint: Json
) -> None:
    job = await submit(http, "words", {"text": "to be or not to be"}, tags="told")
    [received] = await receiver.first("/hook")
    message = verify(received, endpoint["secret"])
    end = await done(http, job)
    assert message["type"] == "job.succeeded"
    assert message["timestamp"] == end["finished_at"]
    links = {name: f"https://jobs.example.com{path}" for name, path in job["links"].items()}
    assert message["data"] == end | {"links": links}
    assert message["data"]["links"]["self"] == f"https://jobs.example.com/background/jobs/{job['id']}"
    with pytest.raises(WebhookVerificationError):
        Webhook(endpoint["secret"]).verify(received.body.replace(b"succeeded", b"failed"), received.headers)
    delivery = await delivery_of(http, job)
    assert delivery["status"] == "delivered"
    assert delivery["webhook"] == endpoint["id"]
    assert delivery["message_id"] == received.headers["webhook-id"]
    [attempt] = delivery["attempts"]
    assert attempt["status"] == 204
    assert attempt["error"] is None
    listed = (await http.get(f"/webhooks/{endpoint['id']}/deliveries")).json()["deliveries"]
    assert [each["id"] for each in listed] == [delivery["id"]]
    assert len(receiver.received) == 1


async def test_a_callback_url_is_told_and_signed_by_the_services_secret(
    http: httpx2.AsyncClient, receiver: Receiver
) -> None:
    job = await submit(http, "words", {"text": "a"}, callback_url=f"{receiver.url}/back?for=me")
    items = [{"task": "echo", "input": {"value": n}, "callback_url": f"{receiver.url}/batch/{n}"} for n in range(2)]
    assert (await http.post("/jobs/batch", json=items)).status_code == 202
    [secret] = (await http.get("/webhooks/secret")).json()["secrets"]
    [received] = await receiver.first("/back?for=me")
    assert verify(received, secret)["data"]["id"] == job["id"]
    for number in range(2):
        [received] = await receiver.first(f"/batch/{number}")
        assert verify(received, secret)["data"]["result"] == number
    assert "callback_url" not in received.message["data"]


async def test_a_failed_and_a_cancelled_job_are_told_of_too(http: httpx2.AsyncClient, receiver: Receiver) -> None:
    failed = await submit(http, "refuse", {}, callback_url=f"{receiver.url}/failed")
    cancelled = await submit(http, "words", {"text": "a"}, delay="60", callback_url=f"{receiver.url}/cancelled")
    purged = await submit(http, "words", {"text": "a"}, delay="60", callback_url=f"{receiver.url}/purged")
    await http.post(f"/jobs/{cancelled['id']}/cancel")
    await http.delete(f"/jobs/{purged['id']}")
    for path, job, event in (
        ("/failed", failed, "job.failed"),
        ("/cancelled", cancelled, "job.cancelled"),
        ("/purged", purged, "job.cancelled"),
    ):
        [received] = await receiver.first(path)
        assert received.message["type"] == event
        assert received.message["data"]["id"] == job["id"]
        assert received.message["data"]["error"]["code"]


async def test_a_delivery_that_fails_is_tried_again_with_the_same_id_and_body(
    http: httpx2.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers["/flaky"] = [answer(500), answer(302, Location=f"{receiver.url}/elsewhere"), answer(200)]
    job = await submit(http, "words", {"text": "a"}, callback_url=f"{receiver.url}/flaky")
    received = await receiver.first("/flaky", 3)
    assert len({request.headers["webhook-id"] for request in received}) == 1
    assert len({request.body for request in received}) == 1
    delivery = await delivery_of(http, job)
    assert delivery["status"] == "delivered"
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 302, 200]
    assert receiver.at("/elsewhere") == []


async def test_a_delivery_is_given_up_after_its_last_attempt_and_can_be_asked_for_again(
    http: httpx2.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers["/broken"] = [answer(503)]
    job = await submit(http, "words", {"text": "a"}, callback_url=f"{receiver.url}/broken")
    delivery = await delivery_of(http, job)
    assert delivery["status"] == "failed"
    assert [attempt["error"] for attempt in delivery["attempts"]] == ["the receiver answered 503"] * 4
    receiver.answers["/broken"] = [answer(200)]
    again = await http.post(f"/deliveries/{delivery['id']}/redeliver")
    assert again.status_code == 202
    assert again.json()["status"] == "pending"
    delivery = await settled(http, f"/deliveries/{delivery['id']}")
    assert delivery["status"] == "delivered"
    assert len(delivery["attempts"]) == 5
    assert len({request.headers["webhook-id"] for request in receiver.at("/broken")}) == 1


async def test_retry_after_is_honoured(http: httpx2.AsyncClient, receiver: Receiver) -> None:
    receiver.answers["/busy"] = [answer(429, Retry_After="1"), answer(200)]
    await submit(http, "words", {"text": "a"}, callback_url=f"{receiver.url}/busy")
    first, second = await receiver.first("/busy", 2)
    assert second.at - first.at >= 0.99


async def test_410_disables_the_endpoint_until_its_owner_uses_it_again(
    http: httpx2.AsyncClient, receiver: Receiver, endpoint: Json
) -> None:
    receiver.answers["/hook"] = [answer(410), answer(200)]
    job = await submit(http, "words", {"text": "a"})
    delivery = await delivery_of(http, job)
    assert delivery["status"] == "failed"
    assert len(delivery["attempts"]) == 1
    path = f"/webhooks/{endpoint['id']}"
    assert (await http.get(path)).json()["disabled"] == "the receiver answered 410"
    silent = await done(http, await submit(http, "words", {"text": "a"}))
    assert (await http.patch(path, json={"disabled": False})).json()["disabled"] is None
    await submit(http, "words", {"text": "b"})
    await receiver.first("/hook", 2)
    assert (await http.get(f"/jobs/{silent['id']}/deliveries")).json()["deliveries"] == []
    assert (await http.patch(path, json={"disabled": True})).json()["disabled"]


async def test_an_endpoint_is_told_of_what_it_asked_for_only(http: httpx2.AsyncClient, receiver: Receiver) -> None:
    made = [
        await register(http, f"{receiver.url}/only-failed", events=["job.failed"]),
        await register(http, f"{receiver.url}/only-echo", task="echo"),
        await register(http, f"{receiver.url}/only-tag", tag="wanted"),
        await register(http, f"{receiver.url}/all"),
    ]
    await submit(http, "words", {"text": "a"}, tags="wanted")
    await submit(http, "echo", {"value": 1})
    await submit(http, "refuse", {})
    await receiver.first("/all", 3)
    for path, task in (("/only-failed", "refuse"), ("/only-echo", "echo"), ("/only-tag", "words")):
        [received] = await receiver.first(path)
        assert received.message["data"]["task"] == task
    changed = await http.patch(f"/webhooks/{made[1]['id']}", json={"task": None, "events": ["job.cancelled"]})
    assert changed.json()["task"] is None
    assert changed.json()["events"] == ["job.cancelled"]
    for each in made:
        await http.delete(f"/webhooks/{each['id']}")
    assert len(receiver.received) == 6


async def test_while_a_secret_is_rotated_both_sign(
    http: httpx2.AsyncClient, receiver: Receiver, endpoint: Json
) -> None:
    rotated = (await http.post(f"/webhooks/{endpoint['id']}/rotate", params={"overlap": 60})).json()
    assert rotated["secret"] != endpoint["secret"]
    assert (await http.post(f"/webhooks/{endpoint['id']}/test")).status_code == 202
    [received] = await receiver.first("/hook")
    assert received.message["type"] == "webhook.test"
    for secret in (rotated["secret"], endpoint["secret"]):
        verify(received, secret)
    last = (await http.post(f"/webhooks/{endpoint['id']}/rotate", params={"overlap": 0})).json()
    await http.post(f"/webhooks/{endpoint['id']}/test")
    received = (await receiver.first("/hook", 2))[1]
    verify(received, last["secret"])
    with pytest.raises(WebhookVerificationError):
        verify(received, rotated["secret"])


async def test_a_secret_is_shown_once(http: httpx2.AsyncClient, endpoint: Json) -> None:
    assert endpoint["secret"].startswith("whsec_")
    for path in ("/webhooks", f"/webhooks/{endpoint['id']}"):
        assert endpoint["secret"] not in (await http.get(path)).text
    assert endpoint["id"] in (await http.get("/webhooks")).text


async def test_a_large_result_is_left_out_and_linked(http: httpx2.AsyncClient, receiver: Receiver) -> None:
    for size, path in ((15_000, "/large"), (19_990, "/larger"), (100_000, "/largest")):
        await submit(http, "echo", {"value": "x" * size}, callback_url=f"{receiver.url}{path}")
        [received] = await receiver.first(path)
        assert len(received.body) < 20_000
        assert (received.message.get("omitted") == ["result"]) is (path != "/large")
        assert (received.message["data"]["result"] is None) is (path != "/large")
        assert received.message["data"]["links"]["result"].startswith("https://jobs.example.com/background/echo/")


REFUSED = """
    http://10.0.0.1/ http://127.0.0.2/ http://169.254.169.254/latest/meta-data http://[::1]/ http://[::ffff:10.0.0.1]/
    http://[64:ff9b::a00:1]/ http://[2002:a00:1::]/ http://[fd00:ec2::254]/ http://167772161/ http://0x0a000001/
    http://012.0.0.1/ http://0/ http://10.1/ http://[fe80::1]/ http://0xa9.0xfe.0xa9.0xfe/
    ftp://example.com/ http:///x https://user:secret@example.com/ javascript:alert(1) http://example.com:0/ nonsense
""".split()


@pytest.mark.parametrize("url", REFUSED)
async def test_a_url_that_leads_nowhere_public_is_refused_before_anything_is_stored(
    http: httpx2.AsyncClient, url: str
) -> None:
    refused = await http.post("/words", json={"text": "a"}, params={"callback_url": url, "tags": "refused"})
    assert pointers(problem(refused, 422, "invalid-parameter")) == ["/callback_url"]
    batch = await http.post("/jobs/batch", json=[{"task": "words", "input": {"text": "a"}, "callback_url": url}])
    assert pointers(problem(batch, 422, "invalid-input")) == ["/0/callback_url"]
    assert pointers(problem(await http.post("/webhooks", json={"url": url}), 422)) == ["/url"]
    assert (await http.get("/jobs?tag=refused")).json()["jobs"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": "http://127.0.0.1/", "events": []}, "/events"),
        ({"url": "http://127.0.0.1/", "events": ["job.started"]}, "/events/0"),
        ({"url": "http://127.0.0.1/", "tag": "two words"}, "/tag"),
        ({"url": "http://127.0.0.1/", "secret": "mine"}, "/secret"),
        ([], ""),
    ],
)
async def test_what_is_wrong_with_an_endpoint_is_pointed_at(
    http: httpx2.AsyncClient, body: object, pointer: str
) -> None:
    assert pointers(problem(await http.post("/webhooks", json=body), 422, "invalid-input")) == [pointer]


async def test_no_client_can_deliver_by_itself(http: httpx2.AsyncClient) -> None:
    problem(await http.post("/webhook-delivery", json={"delivery": "x"}), 404, "unknown-task")
    problem(await http.post("/words?queue=webhooks", json={"text": "a"}), 422)
    assert "webhook-delivery" not in (await http.get("/tasks")).text


async def test_a_receiver_that_does_not_answer_holds_up_nobody_else(
    http: httpx2.AsyncClient, receiver: Receiver
) -> None:
    items = [{"task": "echo", "callback_url": f"{receiver.url}/held"} for _ in range(30)]
    assert (await http.post("/jobs/batch", json=items)).status_code == 202
    await receiver.first("/held", 2)
    async with receiving() as other:
        for number in range(5):
            job = await submit(http, "words", {"text": "a"}, callback_url=f"{other.url}/{number}")
            assert (await done(http, job))["status"] == "succeeded"
            await other.first(f"/{number}")
    assert len(receiver.at("/held")) == 2
    receiver.held["/held"].set()
    await receiver.first("/held", 30)
    assert receiver.most_open["/held"] <= 2
    assert len({request.headers["webhook-id"] for request in receiver.at("/held")}) == 30


async def test_a_worker_killed_in_the_middle_of_a_delivery_loses_none(
    http: httpx2.AsyncClient, receiver: Receiver, service: Service, puppet: Puppet
) -> None:
    if service.redis_url is None:
        return  # API, worker and store are one process there
    async with receiving() as second:
        job = await submit(http, "words", {"text": "a"}, callback_url=f"{second.url}/held")
        [first] = await second.first("/held")
        service.kill_worker()
        second.held["/held"].set()
        await asyncio.to_thread(service.start_worker)
        again = (await second.first("/held", 2))[1]
        assert again.headers["webhook-id"] == first.headers["webhook-id"]
        assert again.body == first.body
        delivery = await delivery_of(http, job)
        assert delivery["status"] == "delivered"
        assert [attempt["status"] for attempt in delivery["attempts"]] == [204]


async def test_the_documented_receiver_verifies(http: httpx2.AsyncClient, receiver: Receiver, endpoint: Json) -> None:
    document = (ROOT / "docs" / "webhooks.md").read_text()
    snippet: dict[str, Any] = {}
    exec(document.partition("```python\n")[2].partition("```")[0], snippet)
    await submit(http, "words", {"text": "a"})
    [received] = await receiver.first("/hook")
    verified = snippet["verified"]
    assert verified(endpoint["secret"], received.headers, received.body) == received.message
    old = received.headers | {"webhook-timestamp": str(int(received.headers["webhook-timestamp"]) - 3600)}
    other = (await http.post(f"/webhooks/{endpoint['id']}/rotate")).json()["secret"]
    for secret, headers, body in (
        (endpoint["secret"], received.headers, received.body + b" "),
        (endpoint["secret"], old, received.body),
        (other, received.headers, received.body),
    ):
        with pytest.raises(ValueError, match=r"secret|old"):
            verified(secret, headers, body)


async def test_the_command_line_tells_the_secret_that_signs(http: httpx2.AsyncClient, service: Service) -> None:
    if service.redis_url is None:
        return  # nobody else can look into that store
    told = (await http.get("/webhooks/secret")).json()["secrets"]
    command = [sys.executable, "-m", "jobstream_cli", "webhooks", "secret"]
    env = os.environ | {"JOBSTREAM_REDIS_URL": service.redis_url}
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].decode().split() == told
    env["JOBSTREAM_WEBHOOK_SECRET"] = told[0]
    for tenant, same in (((), True), (("--tenant", "acme"), False)):
        process = await asyncio.create_subprocess_exec(*command, *tenant, env=env, stdout=asyncio.subprocess.PIPE)
        assert ((await process.communicate())[0].decode().split() == told) is same
