"""Every pod of chart, launcher and plain manifests passes Pod Security `restricted`, unless it uses hostPath."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from docs.manifests import FOLDER
from launcher.commands.render import manifests_of
from launcher.settings.hardware import PRESETS
from tests.cluster.support.helm import ALL_ON, HELMS, template
from tests.cluster.support.job_settings import settings
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.volcano.install import Volcano

# Volcano's Jobs are validated by Volcano's own types, from which the cluster's definitions are made.
STRICT = ("create", "--dry-run=server", "--validate=strict", "--filename", "-", "--namespace")
Pods = Mapping[str, dict[str, Any]]


def templates(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pods or pod templates of an object."""
    spec = item.get("spec", {})
    if item["kind"] == "Pod":
        yield item
    if "template" in spec:
        yield spec["template"]
    yield from (task["template"] for task in spec.get("tasks", ()))


def pods(objects: Mapping[str, Any]) -> Pods:
    """Return pods to create, by their source."""
    pods_by_source = {}
    for name, items in objects.items():
        for item in filter(None, items):
            for pod_template in templates(item):
                # A service account and a priority class belong to the cluster, and do not concern Pod Security.
                spec = {key: value for key, value in pod_template["spec"].items() if key != "serviceAccountName"}
                spec.pop("priorityClassName", None)
                pods_by_source[f"{name}: {item['kind']} {item['metadata']['name']}"] = {
                    "spec": spec,
                    "meta": pod_template["metadata"],
                }
    return pods_by_source


def pods_of_all_sources(driver: str) -> Pods:
    words = (*ALL_ON, "--set", f"defaults.driver={driver}")
    chart = {"chart": yaml.safe_load_all(template(HELMS["helm4"](), CHART, *words))}
    launcher = {
        f"launcher, {backend}, {options}": manifests_of({**settings(backend, 8, 2, options), "driver": driver}, None)
        for backend in ("batch", "volcano")
        for options in ("plain", "everything", "cpu")
    }
    plain = {path.name: yaml.safe_load_all(path.read_text(encoding="utf-8")) for path in FOLDER.iterdir()}
    return pods({**chart, **launcher, **plain})


@pytest.fixture
def restricted_namespace(cluster: Cluster, namespace: str) -> str:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


def dry_run_pods(cluster: Cluster, namespace: str, pods_by_name: Pods) -> "subprocess.CompletedProcess[str]":
    """Have the server check all pods at once, without creating them."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "labels": pod["meta"].get("labels", {})},
            "spec": pod["spec"],
        }
        for number, pod in enumerate(pods_by_name.values())
    ]
    return dry_run(cluster, namespace, items)


def dry_run(cluster: Cluster, namespace: str, items: list[Any]) -> "subprocess.CompletedProcess[str]":
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    return subprocess.run(cluster.command(*STRICT, namespace), input=text, capture_output=True, text=True, check=False)


def test_pod_security_admits_every_pod(cluster: Cluster, restricted_namespace: str) -> None:
    all_pods = pods_of_all_sources("runtime")
    of_the_chart = {name.removeprefix("chart: ") for name in all_pods if name.startswith("chart: ")}
    assert of_the_chart == {"Job pnas-submit", "Job pnas-cancel", "Pod pnas-test", "Deployment pnas-tensorboard"}
    result = dry_run_pods(cluster, restricted_namespace, all_pods)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("created (server dry run)") == len(all_pods)


def test_the_server_accepts_every_field_of_each_job_kind_for_each_hardware(
    cluster: Cluster, restricted_namespace: str, volcano: Volcano
) -> None:
    assert volcano.labels
    manifests_by_name = {
        f"{name} {backend}": manifests_of(
            {"backend": backend, "hardware": name, "npus": preset.several_nodes[-1], "nodes": 2, "image": "r/p:1"}, None
        )
        for name, preset in PRESETS.items()
        for backend in ("batch", "volcano")
    }
    objects = [item for items in manifests_by_name.values() for item in items]
    assert len(objects) == 4 * len(PRESETS), "each job with its Service, or its rank table"
    result = dry_run(cluster, restricted_namespace, objects)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("created (server dry run)") == len(objects)
    pods_result = dry_run_pods(cluster, restricted_namespace, pods(manifests_by_name))
    assert pods_result.returncode == 0, pods_result.stderr
    misspelt = json.loads(json.dumps(objects[-1]))
    misspelt["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["env"][-1]["valueFrm"] = {}
    refused = dry_run(cluster, restricted_namespace, [misspelt])
    assert 'unknown field "valueFrm"' in refused.stderr


def test_pod_security_refuses_the_hosts_driver(cluster: Cluster, restricted_namespace: str) -> None:
    with_driver = {
        name: pod for name, pod in pods_of_all_sources("host").items() if "driver" in json.dumps(pod["spec"])
    }
    assert len(with_driver) == 6, "of the launcher: the plain manifests and the chart's own pods have none"
    result = dry_run_pods(cluster, restricted_namespace, with_driver)
    assert result.stdout == ""
    assert result.stderr.count('volume "driver" uses restricted volume type "hostPath"') == len(with_driver)
    chart = (CHART / "README.md").read_text(encoding="utf-8")
    assert "`baseline` and `restricted` refuse every path of the host" in chart


def test_training_pods_have_no_token_and_write_only_to_sized_volumes() -> None:
    all_pods = pods_of_all_sources("runtime")
    training = {name: pod["spec"] for name, pod in all_pods.items() if not name.startswith("chart: ")}
    assert len(training) == 9
    for name, spec in training.items():
        assert spec["automountServiceAccountToken"] is False, name
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            assert volume.keys() & {"persistentVolumeClaim", "configMap"} or volume["emptyDir"]["sizeLimit"], name
        (container,) = spec["containers"]
        places = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert places == {"/output", "/dev/shm", "/tmp", "/home/pnas"}, name
        assert container["workingDir"] == "/home/pnas", "where CANN writes kernel_meta"
