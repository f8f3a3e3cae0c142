"""The image and the manifests at work: pods run as they are written, stop as they should, and are replaced unnoticed.

The pods are those of the overlay `local`, two of the API and two workers, but for the image and for one task.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httpx2
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis

from jobstream.client import Client, Event
from tests.deploy import image
from tests.deploy.deployed_tasks import RELEASED, RUNS
from tests.deploy.manifests import K8S, Bundle, render
from tests.deploy.pods import Cluster, Pod, ServiceProxy, podman

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

WATCHERS = 6
LOOPS = 2
"""Clients of each kind that the load has."""


@pytest.fixture(scope="module")
def image_with_tasks(built: str) -> Iterator[str]:
    """An image of a user's, with a module of tasks."""
    tag = f"localhost/jobstream-test-tasks:{os.getpid()}"
    yield image.build_with_tasks(built, tag, Path(__file__).parent / "deployed_tasks.py")
    image.podman("rmi", "--force", tag, check=False)


@dataclass
class Deployment:
    """The cluster, where its API is, and keys for it."""

    cluster: Cluster
    service: ServiceProxy
    key: str
    metrics_key: str
    redis: Redis

    def http(self, *, keep: bool = True) -> httpx2.AsyncClient:
        """A client of the Service. `keep`: whether it uses a connection again."""
        limits = httpx2.Limits(max_keepalive_connections=5 if keep else 0)
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.AsyncClient(base_url=self.service.url, headers=headers, limits=limits, timeout=30)

    async def runs(self) -> dict[str, int]:
        """How often each number was run."""
        found = await cast("Awaitable[dict[bytes, bytes]]", self.redis.hgetall(RUNS))
        return {number.decode(): int(count) for number, count in found.items()}

    async def begun(self, *numbers: int) -> None:
        """Return when these runs have begun."""
        while not {str(number) for number in numbers} <= (await self.runs()).keys():  # noqa: ASYNC110 - in a container
            await asyncio.sleep(0.05)

    async def worker_of(self, job_id: str) -> Pod:
        """The pod that runs the job; waits until one does."""
        async with self.http() as client:
            while True:
                job = (await client.get(f"/jobs/{job_id}")).json()
                if job["worker"]:
                    # A worker's id begins with its host's name, which is the pod's.
                    return next(pod for pod in self.cluster.pods if job["worker"].startswith(pod.name + ":"))
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(image_with_tasks: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """Two pods of the API, two workers and a Redis."""
    bundle = without_tasks(render(K8S / "overlays" / "local"))
    images = {"jobstream": image_with_tasks, "docker.io/library/redis:8": image.base()}
    async with Cluster(bundle, images, tmp_path_factory.mktemp("volumes")) as cluster:
        await cluster.start("redis")
        await asyncio.gather(*(cluster.start(role) for role in ("api", "api", "worker", "worker")))
        keys = []
        for scopes in (("submit", "read"), ("metrics",)):
            options = [word for scope in scopes for word in ("--scope", scope)]
            made = await podman(
                "exec", cluster.of("api")[0].name, "jobstream", "keys", "create", "--tenant", "me", *options
            )
            keys.append(re.findall(r"jsk_\S+", made)[-1])
        host, port = cluster.of("redis")[0].ports["redis"]
        async with (
            ServiceProxy(cluster, "api", "http") as service,
            Redis(host=host, port=port, password="local-only") as redis,
        ):
            yield Deployment(cluster, service, keys[0], keys[1], redis)


def without_tasks(bundle: Bundle) -> Bundle:
    """The image names its own tasks."""
    written = yaml.safe_dump_all(bundle.documents).replace(
        "JOBSTREAM_TASKS: jobstream_workers.tasks", "JOBSTREAM_TASKS: deployed_tasks"
    )
    return Bundle(tuple(yaml.safe_load_all(written)))


async def test_pods_are_locked_drained_and_replaced_as_the_manifests_say(deployed: Deployment) -> None:
    # One test: where tests run side by side, two would have a cluster each.
    await pods_are_as_locked_as_they_are_written(deployed)
    await the_number_that_workers_scale_by_is_there(deployed)
    await a_job_is_finished_by_the_worker_that_is_told_to_stop(deployed)
    await api_and_workers_are_replaced_and_nobody_notices(deployed)


async def pods_are_as_locked_as_they_are_written(deployed: Deployment) -> None:
    """User, capabilities, privileges, seccomp, and a root that is read-only."""
    for role in ("api", "worker", "redis"):
        pod = deployed.cluster.of(role)[0]
        user = pod.workload.pod["securityContext"]["runAsUser"]
        status = await podman("exec", pod.name, "cat", "/proc/1/status")
        said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert said["Uid"].split() == [str(user)] * 4
        assert {said[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
        assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
        assert "refused" in await podman("exec", pod.name, "sh", "-c", "touch /opt/x 2>/dev/null || echo refused")


async def the_number_that_workers_scale_by_is_there(deployed: Deployment) -> None:
    """As KEDA asks for it."""
    scaler = yaml.safe_load_all((K8S / "components" / "autoscale-worker" / "scaledobject.yaml").read_text())
    (trigger,) = next(iter(scaler))["spec"]["triggers"]
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {deployed.metrics_key}"}) as client:
        answer = await client.get(f"{deployed.service.url}/metrics")
        assert f"\n{trigger['metadata']['valueLocation']} " in answer.text
        host, port = deployed.cluster.of("worker")[0].ports["ops"]
        assert "jobstream_slots 10" in (await client.get(f"http://{host}:{port}/metrics")).text


async def a_job_is_finished_by_the_worker_that_is_told_to_stop(deployed: Deployment) -> None:
    """By preStop, SIGTERM and grace, while another worker is there."""
    async with deployed.http() as client:
        answer = await client.post("/leave_a_trace", json={"number": -1, "seconds": 3})
        job_id = answer.raise_for_status().json()["id"]
        pod = await deployed.worker_of(job_id)
        _, stopped = await asyncio.gather(deployed.cluster.start("worker"), deployed.cluster.stop(pod))
        job = (await client.get(f"/jobs/{job_id}")).json()
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert job["worker"].startswith(pod.name)
    assert (await deployed.runs())["-1"] == 1
    assert (stopped.code, stopped.killed) == (0, False)


@dataclass
class Load:
    """What clients did while pods were replaced, and what went wrong."""

    deployed: Deployment
    over: asyncio.Event = field(default_factory=asyncio.Event)
    submitted: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    requests: int = 0

    async def client(self, *, keep: bool) -> None:
        """Submit a short job and look at it, again and again."""
        async with self.deployed.http(keep=keep) as http:
            while not self.over.is_set():
                number = len(self.submitted)
                self.submitted.append("")
                answer = await self._ask(http, "POST", "/leave_a_trace", json={"number": number, "seconds": 0.1})
                if answer is not None:
                    self.submitted[number] = answer.json()["id"]
                    await self._ask(http, "GET", f"/jobs/{self.submitted[number]}")
                await asyncio.sleep(0.1)

    async def _ask(
        self, http: httpx2.AsyncClient, method: str, path: str, json: object = None
    ) -> httpx2.Response | None:
        self.requests += 1
        try:
            answer = await http.request(method, path, json=json)
            if answer.is_success:
                return answer
            self.failures.append(f"{method} {path}: {answer.status_code} {answer.text}")
        except httpx2.HTTPError as error:
            self.failures.append(f"{method} {path}: {error!r}")
        return None


async def watch(client: Client, number: int) -> list[Event]:
    """All that is told of a job that ends when it is released."""
    job = await client.submit("count_until_released", {"number": -100 - number})
    return [event async for event in job.events()]


async def api_and_workers_are_replaced_and_nobody_notices(deployed: Deployment) -> None:
    """No request fails, no job is lost or run twice, no event is missed."""
    cluster, load = deployed.cluster, Load(deployed)
    before = {pod.name for pod in cluster.pods}
    async with Client(deployed.service.url, token=deployed.key) as client:
        watching = [asyncio.create_task(watch(client, number)) for number in range(WATCHERS)]
        clients = [asyncio.create_task(load.client(keep=keep)) for keep in (True, False) for _ in range(LOOPS)]
        await deployed.begun(*(-100 - number for number in range(WATCHERS)))
        drained = asyncio.create_task(cluster.roll_out("worker"))
        stops = await cluster.roll_out("api")
        await cluster.all_going(before)
        await deployed.redis.set(RELEASED, 1)
        stops += await drained
        load.over.set()
        await asyncio.gather(*clients)
        seen = await asyncio.gather(*watching)
        for job_id in filter(None, load.submitted):
            await client.job(job_id).wait(30)

    for role in ("api", "worker"):
        starts = [pod.started_after for pod in cluster.pods if pod.workload.role == role]
        print(f"measured: a pod of {role} is ready after {min(starts):.1f} to {max(starts):.1f} s")
    print(
        f"measured: {load.requests} requests and {len(load.submitted)} jobs while 4 pods were replaced, "
        f"{len(load.failures)} failed; pods went in {[round(stop.seconds, 1) for stop in stops]} s"
    )
    assert before.isdisjoint(pod.name for role in ("api", "worker") for pod in cluster.of(role))
    assert [(stop.code, stop.killed) for stop in stops] == [(0, False)] * 4
    assert load.failures == []
    runs = await deployed.runs()
    wrong = {number: runs.get(str(number)) for number in range(len(load.submitted)) if runs.get(str(number)) != 1}
    assert wrong == {}
    for number, events in enumerate(seen):
        assert events[-1].job is not None, f"the stream of job {number} has ended without its end"
        assert (events[-1].job.status, events[-1].job.attempt) == ("succeeded", 1)
        said = [cast("dict[str, str]", event.data)["message"] for event in events if event.event == "log"]
        assert said == [str(count) for count in range(cast("int", events[-1].job.result))]
        assert runs[str(-100 - number)] == 1
    assert [pod.name for pod in cluster.pods if pod.restarts_wanted] == []
