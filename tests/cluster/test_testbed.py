"""The test bed is a real Kubernetes, and leaves nothing behind."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import binaries, images
from tests.cluster.testbed.cluster import RUNS, Cluster, clean_up
from tests.cluster.testbed.nodes.node import ASCEND_910_LABELS
from tests.cluster.testbed.nodes.processes import StartError, output_of
from tests.cluster.testbed.npus.device_plugin import RESOURCE, preferred
from tests.cluster.testbed.npus.pod_annotations import annotations
from tests.cluster.testbed.storage import claims

HOLDING_SCRIPT = """
import time
from tests.cluster.testbed.cluster import running
with running() as cluster:
    print(cluster.folder, flush=True)
    time.sleep(3600)
"""
TABLES = Path(__file__).parents[1] / "data" / "ranktables"


_until = functools.partial(until, within_s=300)


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


def _script(name: str, script: str, *, npus: int = 0, node: str | None = None) -> dict[str, Any]:
    """Return a pod that runs a Python script, as the trainer's user."""
    pod = _pod(name, npus=npus, node=node)
    pod["spec"]["containers"][0] |= {"image": images.TRAINER, "command": ["python", "-c", script]}
    return pod


def _create(cluster: Cluster, namespace: str, *pods: dict[str, Any]) -> None:
    cluster.create(*({**pod, "metadata": {**pod["metadata"], "namespace": namespace}} for pod in pods))


def test_pods_run_on_both_nodes_and_have_different_addresses(cluster: Cluster, namespace: str) -> None:
    _create(cluster, namespace, *(_pod(f"on-{node.name}", node=node.name) for node in cluster.nodes))

    def pods() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = cluster.get("pods", "--namespace", namespace)["items"]
        return items

    _until(lambda: all(pod["status"]["phase"] == "Running" for pod in pods()))
    addresses = {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in pods()}
    assert [addresses[name].rpartition(".")[0] for name in ("node1", "node2")] == ["10.244.0", "10.244.1"]
    cluster.nodes[1].namespaces.run("ping", "-c1", "-W5", addresses["node1"])


def test_a_pod_gets_the_chips_of_one_ring_and_a_pod_that_asks_for_too_many_waits(
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


def test_the_machines_own_mounts_and_network_show_nothing_of_the_test_bed(cluster: Cluster) -> None:
    assert str(cluster.folder) in cluster.nodes[0].namespaces.run("cat", "/proc/self/mountinfo")
    assert str(RUNS) not in Path("/proc/self/mountinfo").read_text()
    for command, sign in ((["iptables-save"], "KUBE-"), (["ip", "-oneline", "address"], "10.123.")):
        assert all(sign in node.namespaces.run(*command) for node in cluster.nodes), "or this test proves nothing"
        assert sign not in output_of(command)


def test_an_unhealthy_chip_is_not_allocatable(cluster: Cluster) -> None:
    def allocatable() -> str:
        number: str = cluster.get("node", "node2")["status"]["allocatable"][RESOURCE]
        return number

    assert allocatable() == "8"
    cluster.nodes[1].make_unhealthy({6, 7})
    _until(lambda: allocatable() == "6")
    cluster.nodes[1].make_unhealthy(set())
    _until(lambda: allocatable() == "8")


def test_restricted_namespaces_refuse_unrestricted_pods(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(StartError, match='violates PodSecurity "restricted:latest"'):
        _create(cluster, namespace, _pod("refused"))


def test_pods_on_both_nodes_write_to_the_same_claim_without_being_root(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    claims(cluster, namespace, {"shared": tmp_path / "shared"})
    pods = [
        _script(node.name, f"open('/shared/{node.name}', 'w').write('here')", node=node.name) for node in cluster.nodes
    ]
    for pod in pods:
        pod["spec"]["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
        pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    _create(cluster, namespace, *pods)
    files = [tmp_path / "shared" / node.name for node in cluster.nodes]
    _until(lambda: all(path.exists() and path.read_text() == "here" for path in files))
    assert {path.stat().st_uid for path in files} == {images.USER}


def test_not_even_root_can_write_to_the_machines_folders_in_a_pod(cluster: Cluster, namespace: str) -> None:
    places = ["/usr", "/bin", sys.base_prefix, "/opt/pnas/venv", "/opt/pnas/src/trainer"]
    script = f"""
import errno
for place in {places}:
    try:
        open(place + "/written-by-a-test", "w").close()
        print(place, "was written to")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    pod = _script("root", script)
    pod["spec"]["containers"][0]["securityContext"] = {"runAsUser": 0}
    _create(cluster, namespace, pod)
    pod_words = ["root", "--namespace", namespace]
    _until(lambda: cluster.get("pod", *pod_words)["status"]["phase"] == "Succeeded")
    assert cluster.kubectl("logs", *pod_words).split() == ["EROFS"] * len(places)


def test_a_claim_is_refused_for_a_folder_that_nodes_do_not_share(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ValueError, match="/run/pnas: nodes do not share"):
        claims(cluster, namespace, {"own": Path("/run/pnas")})


def test_a_pod_gets_the_annotations_of_ascends_device_plugin(cluster: Cluster, namespace: str) -> None:
    script = "import os, time; print(os.environ['ASCEND_VISIBLE_DEVICES'], flush=True); time.sleep(600)"
    _create(cluster, namespace, *(_script(f"p{number}", script, npus=2, node="node2") for number in range(4)))
    for number in range(4):
        pod = [f"p{number}", "--namespace", namespace]
        cluster.kubectl("wait", "--for=condition=Ready", "pod", *pod, "--timeout=300s")
        cluster.kubectl("wait", "--for=jsonpath={.metadata.annotations.huawei\\.com/kltDev}", "pod", *pod)
        metadata = cluster.get("pod", *pod)["metadata"]
        chips = cluster.kubectl("logs", *pod).strip().split(",")
        assert len(chips) == 2
        names = ",".join(f"Ascend910-{chip}" for chip in chips)
        assert metadata["annotations"]["huawei.com/AscendReal"] == names
        assert metadata["annotations"]["huawei.com/kltDev"] == names
        configuration = json.loads(metadata["annotations"]["ascend.kubectl.kubernetes.io/ascend-910-configuration"])
        assert [device["device_id"] for device in configuration["devices"]] == chips
        assert (configuration["server_id"], configuration["host_ip"]) == (metadata["uid"], "10.123.0.2")


def test_annotations_of_chips_have_the_recorded_form() -> None:
    """Only the device addresses differ from the recording: the test bed invents them."""
    recorded_pod = json.loads((TABLES / "op-HEAD-2nodes-2x8.json").read_text())["pods"][0]
    recorded_annotations = recorded_pod["annotations"]
    pod = {"metadata": {"name": recorded_pod["name"], "uid": recorded_pod["uid"]}}
    new_annotations = annotations(pod, "10.123.0.2", recorded_annotations["huawei.com/kltDev"].split(","))

    def without_addresses(text: str) -> str:
        return re.sub(r'"device_ip":"[0-9.]+"', "", text)

    for name, text in new_annotations.items():
        assert without_addresses(text) == without_addresses(recorded_annotations[name])


def test_nodes_have_the_labels_of_ascends_guide(cluster: Cluster) -> None:
    for node in cluster.nodes:
        labels = cluster.get("node", node.name)["metadata"]["labels"]
        assert ASCEND_910_LABELS.items() <= labels.items()


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
def test_chips_come_from_one_ring_where_possible(
    available: list[int], wanted: list[int], size: int, chips: list[int]
) -> None:
    assert preferred(list(available), wanted, size) == chips


def test_a_cluster_whose_process_is_killed_leaves_nothing_behind(cluster: Cluster) -> None:
    """The test needs `cluster` only to make sure that this machine can run one."""
    with subprocess.Popen([sys.executable, "-c", HOLDING_SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        first_process = int((folder / "node1" / "pid").read_text())
        assert Path(f"/proc/{first_process}").exists()
        os.kill(process.pid, signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{first_process}").exists())
    clean_up()  # the start of another cluster may have cleaned up before
    assert not folder.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{folder.name}-*"))
    assert cluster.folder in RUNS.iterdir(), "the clean-up keeps a running cluster"


@pytest.mark.parametrize(
    ("helm", "version", "kubernetes"), [(binaries.helm3, "v3.20.2", "1.35"), (binaries.helm4, "v4.3.1", "1.37")]
)
def test_both_helms_work_and_render_for_a_current_kubernetes(
    cluster: Cluster, tmp_path: Path, helm: Callable[[], Path], version: str, kubernetes: str
) -> None:
    """Wait for the build that the fixture started. Helm built without its flags renders for Kubernetes 1.20."""
    assert cluster.program.exists()
    program = str(helm())
    assert output_of([program, "version", "--template", "{{.Version}}"]) == version
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: c\nversion: 0.1.0\n")
    template = "kubernetes: {{ .Capabilities.KubeVersion.Major }}.{{ .Capabilities.KubeVersion.Minor }}\n"
    (tmp_path / "templates" / "c.yaml").write_text(template)
    assert f"kubernetes: {kubernetes}\n" in output_of([program, "template", "r", str(tmp_path)])
    releases = output_of([program, "list", "--kubeconfig", str(cluster.kubeconfig), "--all-namespaces"])
    assert releases.startswith("NAME")
