"""Metrics in a real Prometheus: the run's figures, the dashboard's queries, the alert rules."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import needs_program, write_shards
from tests.e2e.command import ROOT, free_port

INFRA = ROOT / "infra" / "prometheus"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = needs_program("prometheus", PROMETHEUS is not None, "prometheus")
ROWS = 400
# Of vLLM's own metrics, which the simulated engine has none of.
VLLM = "ray_vllm_"


class Prometheus:
    """A server that scrapes ``target`` each second."""

    def __init__(self, folder: Path, target: str) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        config = yaml.safe_load((INFRA / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(INFRA / "alerts.yml")]
        config["scrape_configs"] = [
            {"job_name": "ray", "static_configs": [{"targets": [target]}]}
        ]  # fmt: skip
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        assert PROMETHEUS is not None
        self._process = subprocess.Popen(
            [
                PROMETHEUS, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{query}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def wait_for(self, expression: str, seconds: float = 90) -> list[dict[str, Any]]:
        """The samples of a query, once there are any."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if found := self.query(expression):
                    return found
            except OSError:
                pass  # it is starting
            time.sleep(0.5)
        pytest.fail(f"nothing for {expression}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus and the output of a run of two engines that it scrapes; both still at work."""
    folder, port = tmp_path_factory.mktemp("metrics"), free_port()
    write_shards(folder / "in", [ROWS])
    config = {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"},
        "engine": {
            "kind": "simulated", "device": "cpu", "replicas": 2, "vllm": {"max_num_seqs": 8},
            "simulated": {"tokens_median": 500, "seconds_per_token": 0.005, "endless": 0.05},
        },
        "sampling": {"max_tokens": 2000},
        "ray": {"metrics_port": port},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    prometheus = Prometheus(folder, f"127.0.0.1:{port}")
    run = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(path)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_metrics_report_interval_ms": "1000"},
    )  # fmt: skip
    try:
        yield prometheus, str(folder / "out")
    finally:
        run.terminate()
        run.wait(60)
        prometheus.close()


def test_figures_of_a_run_are_in_prometheus(running: tuple[Prometheus, str]) -> None:
    prometheus, output = running
    [traces] = prometheus.wait_for('sum by (output) (ray_qwq_batch_traces_total{state="finished"})')
    assert traces["metric"]["output"] == output
    [to_do] = prometheus.wait_for("max(ray_qwq_batch_rows_to_do)")
    assert float(to_do["value"][1]) == ROWS
    prometheus.wait_for("max(ray_qwq_batch_engines) == 2")
    prometheus.wait_for("count(count by (engine) (ray_qwq_batch_running == 8)) == 2")
    prometheus.wait_for("sum(ray_qwq_batch_waiting) > 0")
    prometheus.wait_for('sum(rate(ray_qwq_batch_tokens_total{kind="spent"}[10s])) > 100')


def test_every_query_of_the_dashboard_finds_something(running: tuple[Prometheus, str]) -> None:
    prometheus, _ = running
    dashboard = json.loads((INFRA / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    ours = [query.replace("$output", ".*") for query in queries if VLLM not in query]
    assert len(ours) >= 8
    for query in ours:
        prometheus.wait_for(query)


def test_alerts_are_loaded_and_none_fires_in_a_good_run(running: tuple[Prometheus, str]) -> None:
    prometheus, _ = running
    prometheus.wait_for("sum(ray_qwq_batch_rows_total) > 0")
    assert prometheus.query("ALERTS{alertstate='firing'}") == []


def test_alert_rules() -> None:
    assert PROMTOOL is not None
    for command in (["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(
            [PROMTOOL, *command], capture_output=True, text=True, cwd=INFRA, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
