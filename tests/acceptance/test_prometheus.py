"""Prometheus's rules and Grafana's dashboard, against Prometheus itself and a service that it scrapes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from jobstream.client import SyncClient
from jobstream.embedded import ChildRedis
from jobstream.guard import start_guarded
from tests.acceptance.service import ROOT, Service
from tests.ports import free_port

RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "jobstream.json"
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(180)


def program(name: str) -> str:
    """Where it is. Without it the test is skipped; where everything is to be tested, it fails."""
    found = shutil.which(name)
    if found is not None:
        return found
    reason = f"no {name}: `scripts/setup --prometheus` installs it, or says how"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=RULES, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, str]]:
    """Each alert: its name, its expression, its runbook."""
    text = (RULES / "alerts.yml").read_text()
    found = []
    for part in text.split("- alert: ")[1:]:
        (expression,) = re.findall(r"expr: (.+)", part)
        (runbook,) = re.findall(r"runbook: (\S+)", part)
        plain = expression[1:-1].replace("''", "'") if expression.startswith("'") else expression
        found.append({"name": part.split("\n")[0], "expr": plain, "runbook": runbook})
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def test_the_rules_and_the_example_are_valid() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_none_on_an_ordinary_day() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_each_alert_is_seen_to_fire() -> None:
    tests = (RULES / "alerts_test.yml").read_text()
    for alert in alerts():
        assert f"- name: {alert['name']} fires" in tests
        assert f"{{alertname: {alert['name']}, eval_time: 5m, exp_alerts: []}}" in tests


def test_each_alert_leads_to_a_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-").replace("`", "").replace("/", "") for heading in headings}
    for alert in alerts():
        page, _, anchor = alert["runbook"].partition("#")
        assert (page, anchor in anchors) == ("docs/operations.md", True), alert


def test_the_dashboard_is_what_its_script_prints() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "grafana_dashboard"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert printed == DASHBOARD.read_text(), "scripts/grafana_dashboard > deploy/grafana/jobstream.json"


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


class Prometheus:
    """It scrapes the service five times a second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[Any]:
        """What it answers. Raises AssertionError for an expression that it does not understand."""
        answer = httpx2.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=20).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    def until(self, expression: str, enough: Callable[[list[Any]], bool] = bool) -> list[Any]:
        deadline = time.monotonic() + PATIENCE
        while not enough(found := self.query(expression)):
            assert time.monotonic() < deadline, (expression, found)
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def prometheus(redis_server: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A service whose jobs have ended well and badly, a webhook among them, scraped meanwhile."""
    binary, directory = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    worker_port, port = free_port(), free_port()
    service = Service(directory, redis_url=redis_server.url, JOBSTREAM_WORKER_PORT=str(worker_port))
    config = (RULES / "prometheus.yml").read_text()
    for written, here in {
        "127.0.0.1:8000": f"127.0.0.1:{service.port}",
        "127.0.0.1:9100": f"127.0.0.1:{worker_port}",
        "15s": "200ms",
        "alerts.yml": str(RULES / "alerts.yml"),
    }.items():
        assert written in config
        config = config.replace(written, here)
    (directory / "prometheus.yml").write_text(config)
    command = [
        binary,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    log = (directory / "prometheus.log").open("wb")
    with log:
        process = start_guarded(command, env=dict(os.environ), stdout=log, stderr=log, cwd=directory)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        service.start()
        deadline = time.monotonic() + PATIENCE
        while not _answers(f"{prometheus.url}/-/ready"):
            assert time.monotonic() < deadline, (directory / "prometheus.log").read_text()
            time.sleep(0.05)
        prometheus.until('sum(up{job=~"jobstream.*"})', lambda found: bool(found) and found[0]["value"][1] == "2")
        with SyncClient(service.url) as client:
            client.submit("words", {"text": "to be"}).wait(30)
            prometheus.until('jobstream_jobs_ended_total{task="words",status="succeeded"} == 1')
            client.submit("words", {"text": "or not to be"}).wait(30)
        prometheus.until("rate(jobstream_jobs_ended_total[1m]) > 0")
        yield prometheus
    finally:
        process.terminate()
        service.close()
        process.stop(timeout=15)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False


def test_each_panel_has_data(prometheus: Prometheus) -> None:
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m")
            deadline = time.monotonic() + 30  # a rate needs a second scrape
            while not prometheus.query(expression):
                assert time.monotonic() < deadline, (panel["title"], expression)
                time.sleep(0.2)


def test_what_each_alert_looks_at_is_there_and_none_fires(prometheus: Prometheus) -> None:
    for alert in alerts():
        assert not prometheus.query(alert["expr"]), alert
        for looked_at in re.split(r" and | or ", alert["expr"]):
            if not looked_at.startswith("absent("):
                prometheus.query(re.sub(r" (?:>|==) [\d.]+$", "", looked_at))
        for metric in set(re.findall(r"jobstream_\w+", alert["expr"])):
            assert prometheus.query(metric), metric
    firing = prometheus.query('ALERTS{alertstate="firing"}')
    assert not firing
    loaded = httpx2.get(f"{prometheus.url}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in loaded} == {alert["name"] for alert in alerts()}


def test_every_metric_that_is_looked_at_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)(?:\{[a-z,]+\})?`", (ROOT / "docs" / "operations.md").read_text()))
    used = {alert["expr"] for alert in alerts()} | {target["expr"] for panel in panels() for target in panel["targets"]}
    for metric in {name for text in used for name in re.findall(r"jobstream_(\w+)", text)}:
        assert metric.removesuffix("_bucket") in documented, metric
