"""A scrape is right for Prometheus' own linter, and the chart's PodMonitor for its operator's definition."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from docs.chart import CHART
from tests.cluster.support.helm import HELMS, template
from tests.cluster.testbed.applying import apply_definitions
from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.cluster import Cluster
from trainer.environment.sampler import HardwareSampler
from trainer.run.metrics_server import HARDWARE, PROGRESS, RunCollector

TIME = "2026-11-30T07:19:07Z"
MONITORING = ("monitoring.podMonitor=true", "monitoring.labels.release=prometheus", "defaults.metrics_port=9400")


class _Sampler(HardwareSampler):
    """A node whose device tells every figure."""

    def __init__(self) -> None:
        super().__init__({}, ranks={})

    @property
    def latest(self) -> Sequence[Mapping[str, Any]]:
        return [{"node": 0, "device": "npu:0", "rank": 0, "health": "OK", **{field: 1.5 for field, *_ in HARDWARE}}]


def test_prometheus_has_nothing_to_say_about_the_form_of_any_figure(tmp_path: Path) -> None:
    """`promtool check metrics` uses the same linter."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, field, *_ in PROGRESS:
        rows.setdefault(kind, {"kind": kind})[field] = TIME if field == "time" else 1.5
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()))
    registry = CollectorRegistry()
    registry.register(RunCollector(tmp_path, {"run": "a", "mode": "full", "model": "m"}, _Sampler()))
    scrape = generate_latest(registry)
    assert scrape.count(b"# TYPE ") == len(PROGRESS) + len(HARDWARE) + 1
    linter = binaries.prometheus() / "prometheus"
    done = subprocess.run([linter], input=scrape, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    bad = subprocess.run([linter], input=b"# TYPE a_total gauge\na_total 1\n", capture_output=True, check=False)
    assert b"a_total no help text" in bad.stdout, "the linter is at work"


def test_the_operators_definition_takes_the_charts_pod_monitor(cluster: Cluster, namespace: str) -> None:
    apply_definitions(cluster, binaries.prometheus() / "monitoring.coreos.com_podmonitors.yaml")
    values = [word for value in MONITORING for word in ("--set", value)]
    rendered = template(HELMS["helm4"](), CHART, *values)
    command = cluster.command("create", "--validate=strict", "-n", namespace, "-f", "-")
    done = subprocess.run(command, input=rendered, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "podmonitor.monitoring.coreos.com/pnas-jobs created" in done.stdout
    (endpoint,) = cluster.get("podmonitor", "pnas-jobs", "-n", namespace)["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics", "the definition has kept the field"
