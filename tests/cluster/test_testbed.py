"""The test bed is a real Kubernetes, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.testbed import images
from tests.cluster.testbed.cluster import RUNS, Cluster, clean_up
from tests.cluster.testbed.npu import RESOURCE, preferred
from tests.cluster.testbed.processes import StartError

# The first run of a machine builds Kubernetes.
pytestmark = pytest.mark.timeout(3600)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _pod(name: str, *, npus: int = 0, node: str | None = None) -> dict[str, Any]:
    limits = {RESOURCE: str(npus)} if npus else {}
    container = {
        "name": "c",
        "image": images.PAUSE,
        "imagePullPolicy": "Never",
        "resources": {"limits": limits},
    }
    selector = {"kubernetes.io/hostname": node} if node else {}
    spec = {"containers": [container], "nodeSelector": selector, "restartPolicy": "Never", "dnsPolicy": "Default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _create(cluster: Cluster, namespace: str, *pods: dict[str, Any]) -> None:
    cluster.create(*({**pod, "metadata": {**pod["metadata"], "namespace": namespace}} for pod in pods))


def test_pods_run_on_both_nodes_and_have_addresses_of_their_own(cluster: Cluster, namespace: str) -> None:
    _create(cluster, namespace, *(_pod(f"on-{node.name}", node=node.name) for node in cluster.nodes))

    def pods() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.get("pods", "--namespace", namespace)["items"]
        return found

    _until(lambda: all(pod["status"]["phase"] == "Running" for pod in pods()))
    addresses = {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in pods()}
    assert [addresses[name].rpartition(".")[0] for name in ("node1", "node2")] == ["10.244.0", "10.244.1"]
    cluster.nodes[1].namespaces.run("ping", "-c1", "-W5", addresses["node1"])


def test_a_pod_gets_the_chips_of_one_ring_and_one_that_asks_for_too_many_waits(
    cluster: Cluster, namespace: str
) -> None:
    sizes = {"two": 2, "four": 4, "nine": 9}
    _create(cluster, namespace, *(_pod(name, npus=size, node="node1") for name, size in sizes.items()))

    def phases() -> dict[str, str]:
        items = cluster.get("pods", "--namespace", namespace)["items"]
        return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in items}

    _until(lambda: phases() == {"two": "Running", "four": "Running", "nine": "Pending"})
    log = (cluster.folder / "logs" / "node1-npu.log").read_text()
    assert "allocated [4, 5, 6, 7]" in log or "allocated [0, 1, 2, 3]" in log
    events = cluster.get("events", "--namespace", namespace)["items"]
    assert any(f"Insufficient {RESOURCE}" in event["message"] for event in events)


def test_an_unhealthy_chip_cannot_be_had(cluster: Cluster) -> None:
    def allocatable() -> str:
        number: str = cluster.get("node", "node2")["status"]["allocatable"][RESOURCE]
        return number

    assert allocatable() == "8"
    cluster.nodes[1].make_unhealthy({6, 7})
    _until(lambda: allocatable() == "6")
    cluster.nodes[1].make_unhealthy(set())
    _until(lambda: allocatable() == "8")


def test_restricted_namespaces_refuse_pods_that_are_not(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(StartError, match='violates PodSecurity "restricted:latest"'):
        _create(cluster, namespace, _pod("refused"))


@pytest.mark.parametrize(
    ("available", "wanted", "size", "chips"),
    [
        (range(8), [], 4, [0, 1, 2, 3]),
        ([2, 3, 4, 5, 6, 7], [], 2, [2, 3]),
        ([2, 3, 4, 5, 6, 7], [], 4, [4, 5, 6, 7]),
        ([1, 2, 5, 6], [5], 2, [5, 6]),
        ([1, 2, 5, 6], [], 3, [1, 2, 5]),
        (range(8), [], 8, list(range(8))),
    ],
)
def test_chips_come_from_one_ring_where_they_can(
    available: list[int], wanted: list[int], size: int, chips: list[int]
) -> None:
    assert preferred(list(available), wanted, size) == chips


def test_a_cluster_whose_process_is_killed_leaves_nothing_behind(cluster: Cluster) -> None:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    command = [sys.executable, "-m", "tests.cluster.testbed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("export KUBECONFIG="), said
        folder = Path(said.split()[1].partition("=")[2]).parent
        first = int((folder / "node1" / "pid").read_text())
        assert Path(f"/proc/{first}").exists()
        os.kill(process.pid, signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{first}").exists())
    assert folder.exists()
    clean_up()
    assert not folder.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{folder.name}-*"))
    assert cluster.folder in RUNS.iterdir(), "one that runs is left alone"
