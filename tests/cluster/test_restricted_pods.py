"""Every pod of the three ways is taken where Pod Security `restricted` is enforced; what costs it is refused."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from docs.manifests import FOLDER
from launcher.manifests.offline import manifests
from launcher.settings.hardware import PRESETS
from tests.cluster.helm import ALL_ON, HELMS, template
from tests.cluster.job_settings import settings
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.volcano.install import Volcano

# Volcano's Jobs are judged by its own types, from which the cluster's definitions are made.
STRICT = ("create", "--dry-run=server", "--validate=strict", "--filename", "-", "--namespace")
Pods = Mapping[str, dict[str, Any]]


def templates(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that an object is, or makes."""
    spec = item.get("spec", {})
    if item["kind"] == "Pod":
        yield item
    if "template" in spec:
        yield spec["template"]
    yield from (task["template"] for task in spec.get("tasks", ()))


def pods(objects: Mapping[str, Any]) -> Pods:
    """Pods to be made, by where they come from."""
    found = {}
    for name, items in objects.items():
        for item in filter(None, items):
            for one in templates(item):
                # An account and a class are the cluster's, and no matter of Pod Security.
                spec = {key: value for key, value in one["spec"].items() if "serviceAccount" not in key}
                spec.pop("priorityClassName", None)
                found[f"{name}: {item['kind']} {item['metadata']['name']}"] = {"spec": spec, "meta": one["metadata"]}
    return found


def of_three_ways(driver: str) -> Pods:
    chart = {
        f"chart, {backend}": yaml.safe_load_all(
            template(HELMS["helm4"](), CHART, *ALL_ON, "--set", f"job.backend={backend},defaults.driver={driver}")
        )
        for backend in ("batch", "volcano")
    }
    launcher = {
        f"launcher, {backend}, {options}": manifests({**settings(backend, 8, 2, options), "driver": driver}, None)
        for backend in ("batch", "volcano")
        for options in ("plain", "everything", "cpu")
    }
    plain = {path.name: yaml.safe_load_all(path.read_text(encoding="utf-8")) for path in FOLDER.iterdir()}
    return pods({**chart, **launcher, **plain})


@pytest.fixture
def restricted(cluster: Cluster, namespace: str) -> str:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


def asked(cluster: Cluster, namespace: str, found: Pods) -> "subprocess.CompletedProcess[str]":
    """Have the server judge them all at once; nothing is made."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "labels": one["meta"].get("labels", {})},
            "spec": one["spec"],
        }
        for number, one in enumerate(found.values())
    ]
    return tried(cluster, namespace, items)


def tried(cluster: Cluster, namespace: str, items: list[Any]) -> "subprocess.CompletedProcess[str]":
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    return subprocess.run(cluster.command(*STRICT, namespace), input=text, capture_output=True, text=True, check=False)


def test_pod_security_takes_every_pod(cluster: Cluster, restricted: str) -> None:
    found = of_three_ways("runtime")
    kinds = {name.partition(": ")[2].split()[0] for name in found}
    assert kinds == {"Job", "Pod", "Deployment"}, "those that train, the chart's test, TensorBoard"
    done = asked(cluster, restricted, found)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == len(found)


def test_the_server_takes_a_job_of_each_kind_for_each_hardware_to_the_last_field(
    cluster: Cluster, restricted: str, volcano: Volcano
) -> None:
    assert volcano.labels
    found = {
        f"{name} {backend}": manifests(
            {"backend": backend, "hardware": name, "npus": preset.several_nodes[-1], "nodes": 2, "image": "r/p:1"}, None
        )
        for name, preset in PRESETS.items()
        for backend in ("batch", "volcano")
    }
    objects = [one for some in found.values() for one in some]
    assert len(objects) == 4 * len(PRESETS), "each job with its Service, or its rank table"
    done = tried(cluster, restricted, objects)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == len(objects)
    judged = asked(cluster, restricted, pods(found))
    assert judged.returncode == 0, judged.stderr
    misspelt = json.loads(json.dumps(objects[-1]))
    misspelt["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["env"][-1]["valueFrm"] = {}
    refused = tried(cluster, restricted, [misspelt])
    assert 'unknown field "valueFrm"' in refused.stderr


def test_the_hosts_driver_costs_the_namespace_its_pod_security(cluster: Cluster, restricted: str) -> None:
    with_driver = {name: one for name, one in of_three_ways("host").items() if "driver" in json.dumps(one["spec"])}
    assert len(with_driver) == 8, "of the chart and the launcher; the plain manifests have none"
    done = asked(cluster, restricted, with_driver)
    assert done.stdout == ""
    assert done.stderr.count('volume "driver" uses restricted volume type "hostPath"') == len(with_driver)
    chart = (CHART / "README.md").read_text(encoding="utf-8")
    assert "`baseline` and `restricted` refuse every path of the host" in chart


def test_pods_that_train_are_given_no_token_and_write_to_sized_volumes_alone() -> None:
    for name, one in of_three_ways("runtime").items():
        if not name.partition(": ")[2].startswith("Job"):
            continue
        spec = one["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            assert volume.keys() & {"persistentVolumeClaim", "configMap"} or volume["emptyDir"]["sizeLimit"], name
        (container,) = spec["containers"]
        places = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert places == {"/output", "/dev/shm", "/tmp", "/home/pnas"}, name
        assert container["workingDir"] == "/home/pnas", "where CANN writes kernel_meta"
