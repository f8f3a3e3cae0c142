"""A cluster in small: pods as the manifests say, with podman for the kubelet's hands.

What a kubelet does is done here by the manifest's own words: user, read-only root, capabilities, memory, environment,
ConfigMaps, Secrets and volumes; startup, readiness and liveness probes with their own periods; and the stop, by
preStop, SIGTERM, the grace, and SIGKILL for who is still there. A rollout surges by one and lets nothing be missing. A
Service is a proxy on a port of this machine: it hands connections to ready pods, and hears of a pod's end as late as
nodes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.checks import quantity
from tests.deploy.image import ENVIRONMENT
from tests.deploy.manifests import Bundle, Document, Workload, values

NEWS_SECONDS = 2.0
"""How long a node may go on sending new connections to a pod that is to go."""

PATIENCE = 300.0


async def podman(*arguments: str, check: bool = True) -> str:
    """What podman says. Raises AssertionError with its complaint."""
    process = await asyncio.create_subprocess_exec(
        "podman",
        *arguments,
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await asyncio.wait_for(process.communicate(), 120)
    assert not check or process.returncode == 0, f"podman {' '.join(arguments)}\n{complaint.decode()}"
    return said.decode(errors="replace").strip()


async def succeeds(*arguments: str) -> bool:
    """Whether podman ends with 0."""
    devnull = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        "podman", *arguments, env=ENVIRONMENT, stdout=devnull, stderr=devnull
    )
    return await asyncio.wait_for(process.wait(), 60) == 0


@dataclass(frozen=True)
class Stopped:
    """How a pod went. `killed`: its grace was not enough."""

    seconds: float
    code: int
    killed: bool


@dataclass
class Pod:
    """A container that runs, and what its probes said last."""

    workload: Workload
    name: str
    ports: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Named ports: where they are on this machine."""
    started_after: float = 0.0
    """Seconds from its start until it was ready."""
    ready: bool = False
    going: bool = False
    restarts_wanted: int = 0
    """Times that its livenessProbe failed for good."""

    async def logs(self) -> str:
        """What it printed."""
        return await podman("logs", self.name, check=False)


class Cluster:
    """Pods on a network of their own. `images`: what the manifests' images are here."""

    def __init__(self, bundle: Bundle, images: Mapping[str, str], directory: Path) -> None:
        self.bundle = bundle
        self.name = f"jobstream-test-{os.getpid()}"
        self.pods: list[Pod] = []
        self.stopped: dict[str, Stopped] = {}
        self._images = images
        self._directory = directory
        self._numbers = itertools.count(1)
        self._probers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Cluster:
        await podman("network", "create", self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for prober in self._probers.values():
            prober.cancel()
        await asyncio.gather(*self._probers.values(), return_exceptions=True)
        made = await podman("ps", "--all", "--quiet", "--filter", f"label=jobstream-test={self.name}", check=False)
        if made:
            await podman("rm", "--force", "--time", "0", "--volumes", *made.split(), check=False)
        await podman("network", "rm", "--force", self.name, check=False)

    def of(self, role: str) -> list[Pod]:
        """The pods of that role that are not to go."""
        return [pod for pod in self.pods if pod.workload.role == role and not pod.going]

    async def start(self, role: str) -> Pod:
        """One more pod of that role; returns when it is ready."""
        workload = self.bundle.role(role)
        pod = Pod(workload, f"{self.name}-{role}-{next(self._numbers)}")
        began = time.monotonic()
        await podman("run", "--detach", *self._options(pod), *self._command(workload))
        self.pods.append(pod)
        for line in (await podman("port", pod.name)).splitlines():
            inside, _, outside = line.partition(" -> ")
            host, _, port = outside.rpartition(":")
            for name, number in workload.ports.items():
                if inside == f"{number}/tcp":
                    pod.ports[name] = host, int(port)
        (container,) = workload.containers
        await self._until(pod, container["startupProbe"], began)
        await self._until(pod, container["readinessProbe"], began)
        pod.started_after = time.monotonic() - began
        pod.ready = True
        self._probers[pod.name] = asyncio.create_task(self._ask(pod, container))
        return pod

    async def stop(self, pod: Pod) -> Stopped:
        """As a kubelet does: preStop, SIGTERM, and SIGKILL when the grace is over, which began with preStop."""
        pod.going = True
        (container,) = pod.workload.containers
        grace = pod.workload.pod["terminationGracePeriodSeconds"]
        began = time.monotonic()
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        news = asyncio.create_task(self._tell_nodes(pod))
        await asyncio.sleep(pause)
        await podman("kill", "--signal", "TERM", pod.name)
        waiting = asyncio.create_task(podman("wait", pod.name))
        done, _ = await asyncio.wait({waiting}, timeout=grace - pause)
        if not done:
            await podman("kill", "--signal", "KILL", pod.name)
        code = int(await waiting)
        await news
        prober = self._probers.pop(pod.name)
        prober.cancel()
        await asyncio.gather(prober, return_exceptions=True)
        self.stopped[pod.name] = Stopped(time.monotonic() - began, code, killed=not done)
        return self.stopped[pod.name]

    async def roll_out(self, role: str) -> list[Stopped]:
        """Replace all pods of a Deployment; one is more at a time, and none goes before its successor is ready."""
        stops = []
        for old in self.of(role):
            await self.start(role)
            stops.append(asyncio.create_task(self.stop(old)))
        return list(await asyncio.gather(*stops))

    async def all_going(self, names: Collection[str]) -> None:
        """Return when all of these pods of API and workers are to go."""
        while any(pod.name in names for role in ("api", "worker") for pod in self.of(role)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _tell_nodes(self, pod: Pod) -> None:
        await asyncio.sleep(NEWS_SECONDS)
        pod.ready = False

    async def _until(self, pod: Pod, probe: Document, began: float) -> None:
        """Ask until the answer is yes; more often than a kubelet does, but not for longer."""
        while not await self._answers(pod, probe):
            state = await podman("inspect", "--format", "{{.State.Status}}", pod.name)
            assert state in ("running", "created"), f"{pod.name} has ended:\n{await pod.logs()}"
            assert time.monotonic() < began + PATIENCE, f"{pod.name} is not ready:\n{await pod.logs()}"
            await asyncio.sleep(0.1)

    async def _ask(self, pod: Pod, container: Document) -> None:
        """Readiness and liveness, each at its own period."""

        async def keep_asking(probe: Document, settle: Callable[[bool], None]) -> None:
            failures = 0
            while True:
                await asyncio.sleep(probe.get("periodSeconds", 10))
                failures = 0 if await self._answers(pod, probe) else failures + 1
                if failures in (0, probe.get("failureThreshold", 3)):
                    settle(failures == 0)

        def ready(answer: bool) -> None:
            if not pod.going:
                pod.ready = answer

        def alive(answer: bool) -> None:
            pod.restarts_wanted += not answer

        async with asyncio.TaskGroup() as asking:
            asking.create_task(keep_asking(container["readinessProbe"], ready))
            asking.create_task(keep_asking(container["livenessProbe"], alive))

    async def _answers(self, pod: Pod, probe: Document) -> bool:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                if "exec" in probe:
                    return await succeeds("exec", pod.name, *probe["exec"]["command"])
                (how,) = probe.keys() & {"httpGet", "tcpSocket"}
                reader, writer = await asyncio.open_connection(*pod.ports[probe[how]["port"]])
                try:
                    if how == "tcpSocket":
                        return True
                    writer.write(
                        f"GET {probe[how]['path']} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n".encode()
                    )
                    return b" 200 " in await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
        return False

    def _options(self, pod: Pod) -> list[str]:
        """The pod's security, memory, environment and volumes, as podman wants to hear them."""
        workload = pod.workload
        around = workload.pod["securityContext"]
        (container,) = workload.containers
        own = container["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        options = [
            *("--name", pod.name, "--hostname", pod.name, "--label", f"jobstream-test={self.name}"),
            *("--network", self.name, "--network-alias", workload.role),
            *("--user", f"{around['runAsUser']}:{around['runAsGroup']}", "--group-add", str(around["fsGroup"])),
            *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"),
            *("--security-opt", "no-new-privileges"),
            *("--memory", str(int(quantity(container["resources"]["limits"]["memory"]) or 0))),
            *("--cpu-shares", str(int((quantity(container["resources"]["requests"]["cpu"]) or 0) * 1024))),
        ]
        for name, value in self.bundle.environment(container).items():
            options += ["--env", f"{name}={value}"]
        for number in workload.ports.values():
            options += ["--publish", f"127.0.0.1::{number}"]
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        for mount in container["volumeMounts"]:
            options += ["--mount", self._mount(workload, volumes.get(mount["name"], {}), mount)]
        return options

    def _mount(self, workload: Workload, volume: Document, mount: Document) -> str:
        path, group = mount["mountPath"], workload.pod["securityContext"]["fsGroup"]
        if "emptyDir" in volume:
            size = int(quantity(volume["emptyDir"]["sizeLimit"]) or 0)
            return f"type=tmpfs,destination={path},tmpfs-size={size},tmpfs-mode=1777"
        source = self._directory / mount["name"]
        source.mkdir(exist_ok=True)
        if "configMap" in volume:
            for name, text in values(self.bundle.get("ConfigMap", volume["configMap"]["name"])).items():
                (source / name).write_text(text)
                (source / name).chmod(0o644)
            source.chmod(0o755)
            return f"type=bind,source={source},destination={path},readonly"
        # A claim: fsGroup owns it.
        os.chown(source, -1, group)
        source.chmod(0o2775)
        return f"type=bind,source={source},destination={path}"

    def _command(self, workload: Workload) -> list[str]:
        (container,) = workload.containers
        environment = self.bundle.environment(container)
        words = [*container.get("command", []), *container.get("args", [])]
        for name, value in environment.items():
            words = [word.replace(f"$({name})", value) for word in words]
        image = self._images[container["image"]]
        return [image, *words]


class ServiceProxy:
    """A Service: connections go to ready pods in turn, and stay where they are. `url` is where it listens."""

    def __init__(self, cluster: Cluster, role: str, port: str) -> None:
        self.url = ""
        self._cluster, self._role, self._port = cluster, role, port
        self._turn = itertools.count()
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ServiceProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._link(reader, writer)
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [pod for pod in self._cluster.pods if pod.workload.role == self._role and pod.ready]
        if not ready:
            return
        pod = ready[next(self._turn) % len(ready)]
        upstream, to_upstream = await asyncio.open_connection(*pod.ports[self._port])
        try:
            await asyncio.gather(_pump(reader, to_upstream), _pump(upstream, writer))
        finally:
            to_upstream.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while piece := await source.read(1 << 16):
        sink.write(piece)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()
