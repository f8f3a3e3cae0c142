"""The doctor: for each finding a deployment that has it, on a real Redis that is set up wrong in just that way."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path

import pytest
from arq.connections import ArqRedis
from click.testing import CliRunner, Result

from jobstream import catalogue, keys
from jobstream.catalogue import ApiInfo, WorkerInfo
from jobstream.embedded import ChildRedis, ServerProgram
from jobstream.job import JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import UrlSource, time_ms
from jobstream.version import VERSION
from jobstream_api.app import create_app
from jobstream_api.settings import ApiSettings
from jobstream_cli.doctor import examine, server
from jobstream_cli.doctor.findings import Finding
from jobstream_cli.doctor.permissions import samples
from jobstream_cli.main import cli
from jobstream_workers.settings import WorkerSettings
from tests.working import Settings, working

SOUND = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "maxmemory": "256mb"}


@pytest.fixture(scope="module")
def patient(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    """A Redis that is the doctor's alone."""
    with ChildRedis(server_program, tmp_path_factory.mktemp("doctor")) as started:
        yield started


@pytest.fixture
async def client(patient: ChildRedis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ArqRedis]:
    """The patient, empty and as it should be. A machine that is busy with other tests is not its fault."""
    monkeypatch.setattr(server, "SLOW_MS", 10_000.0)
    monkeypatch.setattr(server, "VERY_SLOW_MS", 20_000.0)
    monkeypatch.setattr(server, "SKEW_MS", 20_000)
    client = UrlSource(patient.url, kind="child").client()
    await client.flushall()
    for name, value in SOUND.items():
        await client.config_set(name, value)
    yield client
    await client.aclose()


async def found(patient: ChildRedis, *, grace: float | None = None, url: str = "") -> dict[str, Finding]:
    """What the doctor says, by its words; each finding that is not fine has advice."""
    findings, reached = await examine(UrlSource(url or patient.url), grace=grace, drain=17)
    assert reached
    for each in findings:
        assert each.detail
        assert each.level == "ok" or each.advice or each.check == "unread-queue"
    return {each.check: each for each in findings}


def levels(findings: dict[str, Finding]) -> dict[str, str]:
    """Those that are not fine."""
    return {check: each.level for check, each in findings.items() if each.level != "ok"}


async def beat(client: ArqRedis, name: str = "w", **more: object) -> None:
    """A worker's heartbeat."""
    known = {"tasks": ("echo",), "queues": ("default",), "slots": 5, "running": 0, "started_at": 0}
    known |= {"version": VERSION, "clock": await time_ms(client), "drain": 17.0}
    await catalogue.beat(client, WorkerInfo(id=name, **(known | more)), [], life=60)  # type: ignore[arg-type]


async def api_beat(client: ArqRedis, **more: object) -> None:
    known = {"id": "a", "started_at": 0, "version": VERSION, "clock": await time_ms(client), "drain": 5.0}
    await catalogue.beat_api(client, ApiInfo(**(known | more)), life=60)  # type: ignore[arg-type]


async def test_a_deployment_that_is_well_has_no_findings(patient: ChildRedis, client: ArqRedis) -> None:
    await beat(client)
    await api_beat(client)
    assert levels(await found(patient, grace=30)) == {}
    left = [key async for key in client.scan_iter("jobstream:doctor:*")]
    assert left == []


async def test_real_processes_say_what_the_doctor_asks_for(
    patient: ChildRedis, client: ArqRedis, settings: Settings
) -> None:
    source = UrlSource(patient.url, kind="child")
    app = create_app(ApiSettings(auth="open"), source)
    async with working(source, settings()), app.router.lifespan_context(app):
        async with asyncio.timeout(20):
            while not (beats := await catalogue.read_heartbeats(client)).apis:
                await asyncio.sleep(0.02)
                assert beats.workers
        assert levels(await found(patient, grace=30)) == {}
        [(worker, _)], [(api, _)] = beats
        assert (worker.version, api.version, worker.drain) == (VERSION, VERSION, settings().drain_seconds)
    assert await catalogue.read_heartbeats(client) == ([], []), "who stops says so"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"appendonly": "no", "save": ""}, {"persistence": "error"}),
        ({"appendonly": "no", "save": "3600 1"}, {"persistence": "warning"}),
        ({"appendfsync": "no"}, {"persistence": "warning"}),
        ({"maxmemory-policy": "allkeys-lru"}, {"eviction": "error"}),
        ({"maxmemory-policy": "volatile-lru", "maxmemory": "0"}, {"eviction": "warning", "memory": "warning"}),
        ({"maxmemory": "0"}, {"memory": "warning"}),
    ],
)
async def test_a_redis_that_is_set_up_wrong_is_told_of(
    patient: ChildRedis, client: ArqRedis, config: dict[str, str], expected: dict[str, str]
) -> None:
    await beat(client)
    await api_beat(client)
    for name, value in config.items():
        await client.config_set(name, value)
    try:
        assert levels(await found(patient, grace=30)) == expected
    finally:
        await client.config_set("save", "")


async def test_a_redis_that_is_nearly_full_or_has_thrown_keys_away_is_told_of(
    patient: ChildRedis, client: ArqRedis
) -> None:
    used = (await client.info("memory"))["used_memory"]
    info = {"maxmemory_policy": "noeviction", "used_memory": used, "maxmemory": used * 100 // 97, "evicted_keys": 3}
    assert [(each.check, each.level) for each in server.memory(info)] == [
        ("eviction", "ok"),
        ("evicted", "error"),
        ("memory", "error"),
    ]
    assert [each.level for each in server.memory(info | {"maxmemory": used * 10 // 9})][-1] == "warning"


async def test_a_replica_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await client.replicaof("127.0.0.1", "1")
    try:
        findings = [each async for each in _roles(client)]
    finally:
        await client.replicaof("NO", "ONE")
    assert [(each.check, each.level) for each in findings] == [("redis-role", "error")]


async def _roles(client: ArqRedis) -> AsyncIterator[Finding]:
    for each in server.role(await client.info()):
        yield each


def test_what_no_server_here_can_be_is_judged_by_what_it_says() -> None:
    assert server.version({"redis_version": "6.0.16"}).level == "error"
    assert server.version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}).level == "ok"
    assert [each.level for each in server.role({"role": "master", "cluster_enabled": 1})] == ["error"]
    assert [server.latency(each).level for each in (0.3, 12, 200)] == ["ok", "warning", "error"]
    failing = server.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, {})
    assert next((each.check, each.level) for each in failing) == ("persistence-fails", "error")
    assert [each.level for each in server.persistence({"aof_enabled": 0}, {})] == ["note"]


ALLOWED = "~arq:* ~jobstream:* &jobstream:* +@all -@dangerous -@admin +info"


@pytest.mark.parametrize(
    ("rules", "check", "said"),
    [
        (f"{ALLOWED} -eval -evalsha", "acl-commands", "EVAL, EVALSHA"),
        (f"{ALLOWED} -zadd", "acl-commands", "ZADD"),
        (f"{ALLOWED} -subscribe", "acl-commands", "SUBSCRIBE"),
        (f"{ALLOWED} -exec -multi", "acl-commands", "MULTI, EXEC"),
        ("~jobstream:* &jobstream:* +@all", "acl-keys", "arq:*"),
        ("~arq:* &jobstream:* +@all", "acl-keys", "jobstream:*"),
        ("~arq:* ~jobstream:* resetchannels &mine:* +@all", "acl-channels", "jobstream:*"),
    ],
)
async def test_what_the_redis_user_may_not_do_is_named(
    patient: ChildRedis, client: ArqRedis, rules: str, check: str, said: str
) -> None:
    await client.execute_command("ACL", "SETUSER", "svc", "reset", "on", ">pw", *rules.split())  # type: ignore[no-untyped-call]
    findings = await found(patient, url=patient.url.replace("unix://", "unix://svc:pw@"))
    assert set(levels(findings)) == {check}
    assert said in findings[check].detail
    assert "'svc'" in findings[check].detail
    # The advice is what helps.
    words = findings[check].advice.removeprefix("ACL SETUSER svc ").split()
    await client.execute_command("ACL", "SETUSER", "svc", *words)  # type: ignore[no-untyped-call]
    findings = await found(patient, url=patient.url.replace("unix://", "unix://svc:pw@"))
    assert not [each for each in findings if each.startswith("acl-")], findings


def test_every_command_of_every_script_is_tried() -> None:
    scripts = [each for each in resources.files("jobstream.scripts").iterdir() if each.name.endswith(".lua")]
    sent = {name for each in scripts for name in re.findall(r"redis\.p?call\('([A-Z]+)'", each.read_text())}
    assert sent <= {str(sample[0]) for sample in samples("x")}


async def test_a_clock_that_is_wrong_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    now = await time_ms(client)
    await beat(client, clock=now - 50_000)
    await api_beat(client, clock=now + 60_000)
    findings = [each for each in (await examine(UrlSource(patient.url), grace=30, drain=17))[0] if each.level != "ok"]
    assert [each.check for each in findings] == ["clock-skew", "clock-skew"]
    assert "of w is 5" in findings[0].detail
    assert "behind" in findings[0].detail
    assert "ahead of" in findings[1].detail
    assert server.skew("clock", "this machine", 25_000) is not None


async def test_different_versions_are_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await beat(client, version="0.0.1")
    await api_beat(client)
    findings = await found(patient, grace=30)
    assert levels(findings) == {"version-skew": "warning"}
    assert "0.0.1" in findings["version-skew"].detail
    await api_beat(client, version="0.0.1")
    assert levels(await found(patient, grace=30)) == {"version-skew": "note"}


async def test_a_worker_that_beats_and_does_not_claim_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await beat(client, unreached=90)
    await api_beat(client)
    assert levels(await found(patient, grace=30)) == {"deaf-worker": "error"}


async def test_a_queue_that_nobody_serves_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await api_beat(client)
    assert levels(await found(patient, grace=30)) == {"workers": "warning"}
    await beat(client)
    await Queue(client).submit("echo", {}, options=SubmitOptions(queue="elsewhere"))
    findings = await found(patient, grace=30)
    assert levels(findings) == {"unread-queue": "error"}
    assert "'elsewhere'" in findings["unread-queue"].detail


async def test_jobs_whose_task_nobody_has_are_told_of(
    patient: ChildRedis, client: ArqRedis, settings: Settings
) -> None:
    await api_beat(client)
    async with working(UrlSource(patient.url, kind="child"), settings()):
        await Queue(client).submit("nobody-has-it", {})
        async with asyncio.timeout(20):
            while not await client.zcard(f"{keys.LEFT}default:nobody-has-it"):  # noqa: ASYNC110 (no event says so)
                await asyncio.sleep(0.02)
        findings = await found(patient, grace=30)
    assert levels(findings) == {"lacked-task": "error"}
    assert "'nobody-has-it'" in findings["lacked-task"].detail


async def test_a_job_that_nobody_took_over_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await beat(client)
    await api_beat(client)
    job = await Queue(client).submit("echo", {})
    await client.zrem(keys.index(status=JobStatus.QUEUED), job.id)
    await client.hset(keys.record(job.id), "status", "running")  # type: ignore[misc]
    await client.zadd(keys.index(status=JobStatus.RUNNING), {job.id: 1})
    now = await time_ms(client)
    await client.zadd(keys.queue("default"), {job.id: now})
    assert levels(await found(patient, grace=30)) == {}, "its lease may have ended just now"
    await client.zadd(keys.queue("default"), {job.id: now - 120_000})
    findings = await found(patient, grace=30)
    assert levels(findings) == {"stuck-lease": "error"}
    assert job.id in findings["stuck-lease"].detail
    await client.set(keys.in_progress(job.id), "w#1", px=60_000)
    assert levels(await found(patient, grace=30)) == {}


async def test_a_grace_period_that_is_too_short_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await beat(client, drain=WorkerSettings(shutdown_seconds=300, kill_seconds=5).drain_seconds)
    await api_beat(client)
    for grace, expected in ((None, "note"), (307, "error"), (330, None)):
        assert levels(await found(patient, grace=grace)).get("grace") == expected


def doctor(url: str, *options: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *options], env={"JOBSTREAM_REDIS_URL": url})


async def test_the_exit_code_says_how_bad_it_is(patient: ChildRedis, client: ArqRedis, tmp_path: Path) -> None:
    await beat(client)
    await api_beat(client)
    well = await asyncio.to_thread(doctor, patient.url, "--grace", "30", "--strict")
    assert (well.exit_code, "error  " in well.stdout) == (0, False), well.stdout
    await client.config_set("maxmemory", "0")
    assert (await asyncio.to_thread(doctor, patient.url)).exit_code == 0
    assert (await asyncio.to_thread(doctor, patient.url, "--strict")).exit_code == 1
    bad = await asyncio.to_thread(doctor, patient.url, "--grace", "3", "--json")
    assert bad.exit_code == 1
    said = json.loads(bad.stdout)
    assert said["counts"]["error"] == 1
    [grace] = [each for each in said["findings"] if each["level"] == "error"]
    assert grace["check"] == "grace"
    assert "JOBSTREAM_SHUTDOWN_SECONDS" in grace["advice"]
    nobody = await asyncio.to_thread(doctor, f"unix://{tmp_path}/none.sock", "--json")
    assert nobody.exit_code == 7
    assert json.loads(nobody.stdout)["findings"][0]["check"] == "redis"
    assert (await asyncio.to_thread(doctor, "")).exit_code == 2


async def test_a_wrong_password_is_told_of(patient: ChildRedis, client: ArqRedis) -> None:
    await client.execute_command("ACL", "SETUSER", "svc", "reset", "on", ">pw", *ALLOWED.split())  # type: ignore[no-untyped-call]
    wrong = await asyncio.to_thread(doctor, patient.url.replace("unix://", "unix://svc:guess@"))
    assert wrong.exit_code == 7
    assert "JOBSTREAM_REDIS_URL" in wrong.stdout


def test_operations_lists_every_finding() -> None:
    sources = (Path(__file__).parents[2] / "cli/jobstream_cli/doctor").glob("*.py")
    text = "".join(each.read_text() for each in sources)
    checks = set(re.findall(r"\b(?:ok|note|warning|error|say|skew)\(\s*\"([a-z-]+)\"", text))
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    assert len(checks) > 15
    assert [check for check in sorted(checks) if f"`{check}`" not in page] == []
