"""What no schema knows of the manifests: that names meet, that times add up, and that the service is as they say.

Each check is a generator of sentences, one for each mistake; `mistakes` is all of them together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from jobstream.fake import FakeSource
from jobstream.redis import UrlSource
from jobstream.task import DEFAULT_TIMEOUT
from jobstream_api.app import create_app
from jobstream_api.main import LINGER_SECONDS
from jobstream_api.service import GRACE_SECONDS
from jobstream_api.settings import ApiSettings
from jobstream_workers.settings import WorkerSettings
from tests.deploy.image import image_environment
from tests.deploy.manifests import COMPONENT, PART_OF, Bundle, Document, Workload, values

Mistakes = Iterator[str]

API, WORKER = "api", "worker"
SETTINGS: dict[str, type[BaseSettings]] = {API: ApiSettings, WORKER: WorkerSettings}
PREFIX = "JOBSTREAM_"

ENDPOINTS_SECONDS = 5
"""What a cluster gets to tell all of its nodes that a pod goes."""
MARGIN_SECONDS = 5
"""What a process gets beyond the sum of its own waits."""
LEFT_BEHIND_SECONDS = 2
"""What a worker waits after JOBSTREAM_KILL_SECONDS."""
START_SECONDS = 30
"""What a process may take to start, on a busy node."""
WORKER_PATHS = {"/livez", "/readyz", "/metrics"}

_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?\Z")
_SELECTOR = re.compile(r'(?P<metric>[a-z_]+)\{queue="(?P<queue>[^"]+)"\}\Z')
_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_CLUSTER_WIDE = {"Namespace"}


def mistakes(bundle: Bundle) -> list[str]:
    """All that is wrong with what is applied together."""
    if wrong := [*settings(bundle)]:  # others read them
        return wrong
    return [mistake for check in CHECKS for mistake in check(bundle)]


def names_and_labels(bundle: Bundle) -> Mistakes:
    """Names are there once, and are names."""
    seen = Counter((each["kind"], each["metadata"].get("name")) for each in bundle.documents)
    for (kind, name), count in seen.items():
        if count > 1:
            yield f"{kind} {name} is there {count} times"
        if not name or not _NAME.match(name):
            yield f"{kind} {name}: not a name"
    for each in bundle.documents:
        labels = dict(each["metadata"].get("labels") or {})
        labels |= ((each.get("spec") or {}).get("template") or {}).get("metadata", {}).get("labels", {})
        for key, value in labels.items():
            if not _LABEL_VALUE.match(str(value)):
                yield f"{_name(each)}: {key}={value} is not a label"


def namespaces(bundle: Bundle) -> Mistakes:
    """Everything is in one namespace, and that admits nothing but restricted pods."""
    inside = {each["metadata"].get("namespace") for each in bundle.documents if each["kind"] not in _CLUSTER_WIDE}
    if len(inside) != 1 or None in inside:
        yield f"there is more than one namespace, or none: {inside}"
    for each in bundle.of("Namespace"):
        if each["metadata"]["name"] not in inside:
            yield f"{_name(each)} is empty"
        if each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{_name(each)} does not enforce the restricted profile"


def workloads(bundle: Bundle) -> Mistakes:
    """A workload selects its own pods, and can be rolled out without a gap."""
    for each in bundle.workloads:
        wanted = each.spec["selector"].get("matchLabels", {})
        if not wanted or not wanted.items() <= each.labels.items():
            yield f"{each.name} does not select its own pods"
        if len(bundle.selected(wanted)) > 1:
            yield f"{each.name} selects pods of another workload"
        if not {PART_OF, COMPONENT} <= each.labels.keys():
            yield f"{each.name}: its pods lack the labels that policies look for"
        if each.document["kind"] == "Deployment":
            rolling = (each.spec.get("strategy") or {}).get("rollingUpdate") or {}
            if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
                yield f"{each.name}: a rollout takes a pod away before another one is there"
        elif not bundle.known("Service", each.spec.get("serviceName", "")):
            yield f"{each.name}: there is no Service {each.spec.get('serviceName')}"


def services(bundle: Bundle) -> Mistakes:
    """A Service selects pods, and its ports are theirs."""
    for each in bundle.of("Service"):
        pods = bundle.selected(each["spec"].get("selector") or {})
        if len(pods) != 1:
            yield f"{_name(each)} selects {len(pods)} workloads"
        for port in each["spec"]["ports"]:
            for pod in pods:
                if not _has_port(pod, port.get("targetPort", port["port"])):
                    yield f"{_name(each)}: {pod.name} has no port {port.get('targetPort')}"


def probes(bundle: Bundle) -> Mistakes:
    """Every container is asked at its start, for its life and whether it is ready, at ports and paths that it has."""
    for each in bundle.workloads:
        for container in each.containers:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind not in container:
                    yield f"{each.name}: no {kind}"
        for _container, kind, probe in each.probes:
            for how in ("httpGet", "tcpSocket"):
                if how in probe and not _has_port(each, probe[how]["port"]):
                    yield f"{each.name}: its {kind} asks at port {probe[how]['port']}, which it does not have"
            if "httpGet" in probe and probe["httpGet"].get("path") not in _paths(each.role):
                yield f"{each.name}: {probe['httpGet'].get('path')} is not one of its paths"
            if kind == "livenessProbe" and probe.get("httpGet", {}).get("path", "/livez") != "/livez":
                yield f"{each.name}: its livenessProbe asks for more than its life"
            if kind == "startupProbe" and _patience(probe) < START_SECONDS:
                yield f"{each.name}: its startupProbe waits for {_patience(probe)} s only"
            if kind == "livenessProbe" and each.role in SETTINGS:
                grace = probe.get("terminationGracePeriodSeconds") or each.pod.get("terminationGracePeriodSeconds", 30)
                if int(grace) > 10:
                    yield f"{each.name}: the kill of a process that hangs waits for {grace} s"


def references(bundle: Bundle) -> Mistakes:
    """What a pod names is there."""
    for each in bundle.workloads:
        pod = each.pod
        if not bundle.known("ServiceAccount", pod.get("serviceAccountName", "")):
            yield f"{each.name}: there is no ServiceAccount {pod.get('serviceAccountName')}"
        for container in each.containers:
            for source in container.get("envFrom", []):
                for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                    if reference in source and not bundle.known(kind, source[reference]["name"]):
                        yield f"{each.name}: there is no {kind} {source[reference]['name']}"
            for variable in container.get("env", []):
                for kind, reference in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                    where = variable.get("valueFrom", {}).get(reference)
                    if where and not _has_key(bundle, kind, where["name"], where["key"]):
                        yield f"{each.name}: {kind} {where['name']} has no {where['key']}"
        for volume in pod.get("volumes", []):
            for key, kind, named in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ):
                if key in volume and not bundle.known(kind, volume[key].get(named, "")):
                    yield f"{each.name}: there is no {kind} {volume[key].get(named)}"


def mounts(bundle: Bundle) -> Mistakes:
    """Volumes are mounted, once each, and what is mounted is a volume."""
    for each in bundle.workloads:
        volumes = {volume["name"] for volume in each.pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in each.spec.get("volumeClaimTemplates", [])}
        mounted = [mount for container in each.containers for mount in container.get("volumeMounts", [])]
        for name in {mount["name"] for mount in mounted} ^ volumes:
            yield f"{each.name}: {name} is a volume or is mounted, not both"
        for container in each.containers:
            paths = Counter(mount["mountPath"] for mount in container.get("volumeMounts", []))
            yield from (f"{each.name}: {path} is mounted twice" for path, count in paths.items() if count > 1)
        for volume in each.pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{each.name}: {volume['name']} may fill the node's disk"


def resources(bundle: Bundle) -> Mistakes:
    """CPU and memory are asked for, memory is limited, CPU is not."""
    for each in bundle.workloads:
        for container in each.containers:
            given = container.get("resources", {})
            amounts: dict[str, dict[str, float]] = {}
            for kind in ("requests", "limits"):
                amounts[kind] = {}
                for what, amount in given.get(kind, {}).items():
                    size = quantity(amount)
                    if size is None:
                        yield f"{each.name}: {amount} is not an amount of {what}"
                    else:
                        amounts[kind][what] = size
            for what in {"cpu", "memory"} - given.get("requests", {}).keys():
                yield f"{each.name}: asks for no {what}"
            if given.get("limits", {}).keys() != {"memory"}:
                yield f"{each.name}: memory is to be limited, and nothing else"
            for what, least in amounts["requests"].items():
                if least > amounts["limits"].get(what, least):
                    yield f"{each.name}: asks for more {what} than it may have"


def restricted(bundle: Bundle) -> Mistakes:
    """The restricted profile of the Pod Security Standards, and a little more."""
    for each in bundle.workloads:
        pod = each.pod
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{each.name}: its pods hold a token of the cluster"
        if pod.get("enableServiceLinks") is not False:
            yield f"{each.name}: its environment holds addresses of other Services"
        for what in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(what):
                yield f"{each.name}: {what}"
        for volume in pod.get("volumes", []):
            if not volume.keys() & {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "projected"}:
                yield f"{each.name}: {volume['name']} is a kind of volume that is not allowed"
        around = pod.get("securityContext", {})
        for container in each.containers:
            context = around | container.get("securityContext", {})
            if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
                yield f"{each.name}: may run as root"
            if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{each.name}: no seccomp profile"
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{each.name}: may gain privileges"
            capabilities = context.get("capabilities", {})
            if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
                yield f"{each.name}: has capabilities"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{each.name}: may write to its image"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{each.name}: takes a port of its node"


def scaling(bundle: Bundle) -> Mistakes:
    """Either a number or one autoscaler says how many pods there are, and it can."""
    targets: list[str] = []
    for each in bundle.of("HorizontalPodAutoscaler", "ScaledObject"):
        spec = each["spec"]
        target = spec["scaleTargetRef"]
        kind, name = target.get("kind", "Deployment"), target["name"]
        targets.append(f"{kind} {name}")
        if bundle.get(kind, name) is None:
            yield f"{_name(each)}: there is no {kind} {name}"
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        high = spec.get("maxReplicas", spec.get("maxReplicaCount", 0))
        if not 1 <= low <= high:
            yield f"{_name(each)}: from {low} to {high} pods"
        for trigger in spec.get("triggers", []):
            yield from _trigger(bundle, each, trigger)
    for target, count in Counter(targets).items():
        if count > 1:
            yield f"{target} has {count} autoscalers"
    for workload in bundle.workloads:
        if workload.name in targets and "replicas" in workload.spec:
            yield f"{workload.name}: each `apply` undoes what its autoscaler does"


def _trigger(bundle: Bundle, scaler: Document, trigger: Document) -> Mistakes:
    """The number that KEDA reads is the API's, for a queue that these workers serve, and counts a worker's slots."""
    metadata = trigger["metadata"]
    service, port = _service_at(bundle, metadata.get("url", ""))
    if service is None:
        yield f"{_name(scaler)}: {metadata.get('url')} is no Service of this namespace, at a port of it"
    elif port is None or [each.role for each in bundle.selected(service["spec"]["selector"])] != [API]:
        yield f"{_name(scaler)}: {metadata.get('url')} is not the API"
    if urlsplit(metadata.get("url", "")).path != "/metrics" or metadata.get("format") != "prometheus":
        yield f"{_name(scaler)}: {metadata.get('url')} is not where the API's metrics are"
    worker = WorkerSettings(**_settings(bundle, WORKER))
    selector = _SELECTOR.match(metadata.get("valueLocation", ""))
    if selector is None or selector["metric"] != "jobstream_jobs_due":
        yield f"{_name(scaler)}: {metadata.get('valueLocation')} is not the number of jobs that are due"
    elif selector["queue"] not in worker.queue_names:
        yield f"{_name(scaler)}: the workers do not serve the queue {selector['queue']}"
    if metadata.get("targetValue") != str(worker.max_jobs):
        yield f"{_name(scaler)}: a worker has {worker.max_jobs} slots, not {metadata.get('targetValue')}"
    reference = trigger.get("authenticationRef", {}).get("name", "")
    authentication = bundle.get("TriggerAuthentication", reference)
    if authentication is None or metadata.get("authMode") != "bearer":
        yield f"{_name(scaler)}: the API's metrics need a key"
        return
    for source in authentication["spec"].get("secretTargetRef", []):
        if not _has_key(bundle, "Secret", source["name"], source["key"]):
            yield f"{_name(authentication)}: Secret {source['name']} has no {source['key']}"


def disruption(bundle: Bundle) -> Mistakes:
    """A budget is about pods that are there, and never blocks the drain of a node for ever."""
    for each in bundle.of("PodDisruptionBudget"):
        if len(bundle.selected(each["spec"]["selector"].get("matchLabels", {}))) != 1:
            yield f"{_name(each)} is about no workload"
        if each["spec"].get("maxUnavailable") in (None, 0, "0%") or "minAvailable" in each["spec"]:
            yield f"{_name(each)} may block the drain of a node for ever"
        if each["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{_name(each)}: pods that are ill anyhow block the drain of a node"


def doors(bundle: Bundle) -> Mistakes:
    """What comes from outside comes to a Service that is there, and streams are not cut."""
    for each in bundle.of("Ingress"):
        for rule in each["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                target = path["backend"]["service"]
                port = target["port"].get("name", target["port"].get("number"))
                if not _service_has(bundle, target["name"], port):
                    yield f"{_name(each)}: no Service {target['name']} with a port {port}"
        hosts = {rule.get("host") for rule in each["spec"]["rules"]}
        if {host for tls in each["spec"].get("tls", []) for host in tls["hosts"]} != hosts:
            yield f"{_name(each)}: hosts without TLS, or the other way round"
    for each in bundle.of("HTTPRoute"):
        for rule in each["spec"]["rules"]:
            for target in rule["backendRefs"]:
                if not _service_has(bundle, target.get("name", ""), target.get("port")):
                    yield f"{_name(each)}: no Service {target.get('name')} with a port {target.get('port')}"
            if rule.get("timeouts") != {"request": "0s", "backendRequest": "0s"}:
                yield f"{_name(each)}: event streams are cut"


def monitors(bundle: Bundle) -> Mistakes:
    """What is scraped is there."""
    for each in bundle.of("PodMonitor"):
        pods = bundle.selected(each["spec"]["selector"].get("matchLabels", {}))
        if not pods:
            yield f"{_name(each)} finds no pods"
        for endpoint in each["spec"]["podMetricsEndpoints"]:
            for pod in pods:
                if not _has_port(pod, endpoint["port"]) or endpoint.get("path", "/metrics") not in _paths(pod.role):
                    yield f"{_name(each)}: {pod.name} has nothing there"
                if pod.role == API and "authorization" not in endpoint:
                    yield f"{_name(each)}: the API's metrics need a key"
            if (key := endpoint.get("authorization", {}).get("credentials")) and not _has_key(
                bundle, "Secret", key["name"], key["key"]
            ):
                yield f"{_name(each)}: Secret {key['name']} has no {key['key']}"


def network(bundle: Bundle) -> Mistakes:
    """Policies are about pods that are there; who may reach whom is a table."""
    for each in bundle.of("NetworkPolicy"):
        pods = bundle.selected(each["spec"]["podSelector"].get("matchLabels", {}))
        if not pods:
            yield f"{_name(each)} is about no pods"
        for rule in each["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if not any(_has_port(pod, port["port"]) for pod in pods):
                    yield f"{_name(each)}: its pods have no port {port['port']}"
            for peer in rule.get("from", []):
                if "podSelector" in peer and not bundle.selected(peer["podSelector"].get("matchLabels", {})):
                    yield f"{_name(each)}: lets in pods that are not there"
    roles = {each.role for each in bundle.workloads}
    for source, target, port in [("anybody", API, "http"), (API, "redis", "redis"), (WORKER, "redis", "redis")]:
        if target in roles and not reaches(bundle, source, target, port):
            yield f"{source} cannot reach {target} at {port}"
    for source, target, port in [("anybody", WORKER, "ops"), ("anybody", "redis", "redis"), (API, WORKER, "ops")]:
        if target in roles and reaches(bundle, source, target, port):
            yield f"{source} can reach {target} at {port}"
    scraped = {
        pod.role for each in bundle.of("PodMonitor") for pod in bundle.selected(each["spec"]["selector"]["matchLabels"])
    }
    if WORKER in scraped and not reaches(bundle, "monitoring", WORKER, "ops"):
        yield "Prometheus cannot reach the workers' metrics"


def reaches(bundle: Bundle, source: str, target: str, port: str) -> bool:
    """Whether policies let `source` (a role of ours, a namespace, or anybody) reach that port of `target`."""
    to = bundle.role(target)
    closed = False
    for policy in bundle.of("NetworkPolicy"):
        spec = policy["spec"]
        if not spec["podSelector"].get("matchLabels", {}).items() <= to.labels.items():
            continue
        closed = closed or "Ingress" in spec.get("policyTypes", [])
        for rule in spec.get("ingress", []):
            if rule.get("ports") and port not in [each["port"] for each in rule["ports"]]:
                continue
            if "from" not in rule or any(_is_peer(bundle, peer, source) for peer in rule["from"]):
                return True
    return not closed


def _is_peer(bundle: Bundle, peer: Mapping[str, Any], source: str) -> bool:
    if "namespaceSelector" in peer:
        return bool(peer["namespaceSelector"].get("matchLabels", {}).get("kubernetes.io/metadata.name") == source)
    wanted = peer.get("podSelector", {}).get("matchLabels", {})
    return any(each.role == source for each in bundle.selected(wanted))


def stop_times(bundle: Bundle) -> Mistakes:
    """Nobody is killed who stops as it should: the grace of a pod is the sum of what its process may take, and some."""
    for each in bundle.workloads:
        grace = each.pod.get("terminationGracePeriodSeconds", 30)
        pause = sum(
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            for container in each.containers
        )
        if each.role == API:
            needed = pause + LINGER_SECONDS + GRACE_SECONDS
            if pause < ENDPOINTS_SECONDS:
                yield f"{each.name}: goes before the nodes know, and requests fail"
        elif each.role == WORKER:
            settings = WorkerSettings(**_settings(bundle, WORKER))
            needed = pause + settings.shutdown_seconds + settings.kill_seconds + LEFT_BEHIND_SECONDS
            if settings.shutdown_seconds < DEFAULT_TIMEOUT:
                yield f"{each.name}: a rollout stops jobs that may run for {DEFAULT_TIMEOUT:.0f} s"
            if pause:
                yield f"{each.name}: claims jobs while it waits to be stopped"
        else:
            needed = pause + 30
        if grace < needed + MARGIN_SECONDS:
            yield f"{each.name}: needs {needed:.0f} s and some to stop, and has {grace} s"


def settings(bundle: Bundle) -> Mistakes:
    """What the environment says are settings, with values that they can have."""
    known = {PREFIX + name.upper() for each in SETTINGS.values() for name in each.model_fields}
    known |= {PREFIX + name for name in ("FETCH_ALLOW", "FETCH_MAX_BYTES", "FETCH_TIMEOUT")}
    for role, model in SETTINGS.items():
        workload = bundle.role(role)
        (container,) = workload.containers
        given = bundle.environment(container)
        for name in given:
            if name not in known:
                yield f"{workload.name}: {name} is not a setting"
        try:
            model(**_settings(bundle, role))
        except (ValidationError, ValueError) as error:
            yield f"{workload.name}: {error}"
            continue
        here = model(**_settings(bundle, role))
        port = here.port if isinstance(here, ApiSettings) else getattr(here, "worker_port", None)
        if list(workload.ports.values()) != [port]:
            yield f"{workload.name}: listens at {port}, not at {list(workload.ports.values())}"
        if container.get("args") != [role] or "command" in container:
            yield f"{workload.name}: does not start `jobstream {role}`"
        if given.get("JOBSTREAM_AUTH") != "on":
            yield f"{workload.name}: anybody may do everything"
        if url := given.get("JOBSTREAM_REDIS_URL"):
            yield from _redis(bundle, workload, url)
        files = str(getattr(here, "files_dir", ""))
        mounted = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        claims = [volume for volume in workload.pod.get("volumes", []) if "persistentVolumeClaim" in volume]
        if claims and not any(files.startswith(path + "/") for path in mounted):
            yield f"{workload.name}: keeps uploads at {files}, where nothing is mounted"


def _redis(bundle: Bundle, workload: Workload, url: str) -> Mistakes:
    """The URL is that of the Redis that is here, with its password."""
    UrlSource(url)
    parts = urlsplit(url)
    if not _service_has(bundle, str(parts.hostname), parts.port or 6379):
        yield f"{workload.name}: there is no Redis at {parts.hostname}:{parts.port}"
        return
    secret = values(bundle.generated("Secret", "redis"))
    if secret.get("REDIS_PASSWORD") != parts.password:
        yield f"{workload.name}: Redis has another password"


def configmaps(bundle: Bundle) -> Mistakes:
    """The values of ConfigMaps are strings: Kubernetes takes nothing else."""
    for each in bundle.of("ConfigMap"):
        for key, value in (each.get("data") or {}).items():
            if not isinstance(value, str):
                yield f"{_name(each)}: {key} is not a string"


def redis_configuration(bundle: Bundle) -> Mistakes:
    """Our own Redis keeps what it was given."""
    for each in bundle.workloads:
        if each.role != "redis":
            continue
        (container,) = each.containers
        lines = dict(
            line.split(" ", 1)
            for line in values(bundle.generated("ConfigMap", "redis")).get("redis.conf", "").splitlines()
            if line and not line.startswith("#")
        )
        if (lines.get("appendonly"), lines.get("maxmemory-policy")) != ("yes", "noeviction"):
            yield f"{each.name}: may lose jobs"
        limit = quantity(container["resources"]["limits"]["memory"]) or 0
        memory = lines.get("maxmemory", "0")
        if not memory.endswith("mb") or int(memory[:-2]) * 2**20 * 2 > limit:
            yield f"{each.name}: {memory} is more than half of its limit, and a fork may need twice as much"
        if lines.get("dir") not in [mount["mountPath"] for mount in container["volumeMounts"]]:
            yield f"{each.name}: writes to {lines.get('dir')}, which is not a volume"


CHECKS: tuple[Callable[[Bundle], Mistakes], ...] = (
    names_and_labels,
    namespaces,
    workloads,
    services,
    probes,
    references,
    mounts,
    resources,
    restricted,
    scaling,
    disruption,
    doors,
    monitors,
    network,
    stop_times,
    configmaps,
    redis_configuration,
)


def quantity(amount: object) -> float | None:
    """Kubernetes's `256Mi` as a number; None when it is no amount."""
    match = _QUANTITY.match(str(amount))
    return float(match[1]) * _UNITS.get(match[2] or "", 1.0) if match else None


def _settings(bundle: Bundle, role: str) -> dict[str, Any]:
    """What the image and the manifests tell a process, as arguments of its settings."""
    (container,) = bundle.role(role).containers
    fields = SETTINGS[role].model_fields
    told = image_environment() | bundle.environment(container)
    return {name: told[PREFIX + name.upper()] for name in fields if told.get(PREFIX + name.upper())} | {
        "_env_file": None
    }


def _paths(role: str) -> set[str]:
    """What a GET may ask for."""
    if role != API:
        return WORKER_PATHS
    if not _API_PATHS:
        app = create_app(ApiSettings(_env_file=None, auth="on"), FakeSource())
        _API_PATHS.update(path for path, methods in app.openapi()["paths"].items() if "get" in methods)
    return _API_PATHS


_API_PATHS: set[str] = set()


def _patience(probe: Document) -> float:
    return float(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def _has_port(workload: Workload, port: object) -> bool:
    return port in workload.ports or port in workload.ports.values()


def _has_key(bundle: Bundle, kind: str, name: str, key: str) -> bool:
    found = bundle.get(kind, name)
    return (kind, name) in bundle.external if found is None else key in values(found)


def _service_has(bundle: Bundle, name: str, port: object) -> bool:
    service = bundle.get("Service", name)
    return service is not None and any(port in (each["port"], each.get("name")) for each in service["spec"]["ports"])


def _service_at(bundle: Bundle, url: str) -> tuple[Document | None, int | None]:
    """The Service behind a URL as seen from another namespace, and its port."""
    parts = urlsplit(url)
    name, _, rest = str(parts.hostname).partition(".")
    service = bundle.get("Service", name)
    if service is None or not (rest + ".").startswith(f"{service['metadata'].get('namespace')}.svc."):
        return None, None
    port = parts.port or 80
    return service, port if _service_has(bundle, name, port) else None


def _name(document: Document) -> str:
    return f"{document['kind']} {document['metadata'].get('name')}"
