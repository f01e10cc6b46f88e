"""The trainer runs in a pod as on a production cluster: restricted, with data and output from claims."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.waiting import exit_code_of_a_deleted_pod, until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.storage import claims

NPUS = 2
CPU_LIMIT = 1
SMALL = ("--device=cpu", "--model=pnasnet5tiny", "--image-size=32", "--batch-size=4", "--workers=0")


@pytest.fixture
def restricted_namespace(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path) -> str:
    """Return a namespace for restricted pods only, with images in the claim `data` and an empty claim `output`."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    claims(cluster, namespace, {"data": digits, "output": tmp_path / "output"})
    return namespace


def _pod(name: str, *options: str) -> dict[str, Any]:
    command = ["python", "-m", "trainer", "--data-path", "/data", "--output", "/output", "--run-name", name]
    places = {"data": "/data", "output": "/output", "tmp": "/tmp", "home": "/home/pnas", "shm": "/dev/shm"}
    container = {
        "name": "trainer",
        "image": images.TRAINER,
        "imagePullPolicy": "Never",
        "command": [*command, "--npus", str(NPUS), *SMALL, *options],
        "env": [{"name": "HOME", "value": "/home/pnas"}],
        "resources": {
            "requests": {RESOURCE: str(NPUS), "cpu": "100m"},
            "limits": {RESOURCE: str(NPUS), "cpu": str(CPU_LIMIT)},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in places.items()],
    }
    claims = [{"name": volume, "persistentVolumeClaim": {"claimName": volume}} for volume in ("data", "output")]
    empty = [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]
    spec = {
        "containers": [container],
        "volumes": [*claims, *empty, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "restartPolicy": "Never",
        "dnsPolicy": "Default",
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


_until = functools.partial(until, within_s=300)


def _create(cluster: Cluster, namespace: str, pod: dict[str, Any]) -> None:
    cluster.create({**pod, "metadata": {**pod["metadata"], "namespace": namespace}})


def test_the_trainer_runs_in_a_restricted_pod_over_data_from_a_claim(
    cluster: Cluster, restricted_namespace: str
) -> None:
    _create(cluster, restricted_namespace, _pod("timed", "--mode=performance", "--steps=3", "--warmup-steps=1"))

    def pod() -> Any:
        return cluster.get("pod", "timed", "--namespace", restricted_namespace)

    _until(lambda: pod()["status"]["phase"] in {"Succeeded", "Failed"}, pod)
    log = cluster.kubectl("logs", "timed", "--namespace", restricted_namespace)
    (ended,) = pod()["status"]["containerStatuses"]
    assert ended["state"]["terminated"]["exitCode"] == 0, log
    tagged = re.findall(r"^\[rank (\d) cpu:\1 #\d+\] step ", log, flags=re.MULTILINE)
    assert set(tagged) == {str(rank) for rank in range(NPUS)}, log
    assert re.search(rf"^environment .* cpus={CPU_LIMIT}$", log, re.MULTILINE), log


def test_a_deleted_pod_saves_and_ends_resumably(cluster: Cluster, restricted_namespace: str, tmp_path: Path) -> None:
    _create(
        cluster, restricted_namespace, _pod("long", "--mode=full", "--epochs=1000", "--lr=0.001", "--log-interval=1")
    )
    pod = ["long", "--namespace", restricted_namespace]
    cluster.kubectl("wait", "--for=condition=Ready", "pod", *pod, "--timeout=300s")
    _until(lambda: " step " in cluster.kubectl("logs", *pod), lambda: cluster.kubectl("logs", *pod))
    assert exit_code_of_a_deleted_pod(cluster, *pod) == 75
    assert list((tmp_path / "output" / "long").glob("checkpoints/*"))
