"""Folders of this machine as claims that pods on every node may write to, like a shared file system's."""

import time
from pathlib import Path

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.holder import OVERLAID
from tests.cluster.testbed.processes import StartError

BOUND_WITHIN_S = 60
SIZE = "1Gi"


def claim(cluster: Cluster, namespace: str, name: str, folder: Path) -> None:
    """Make `folder`, which any user may then write to, and a claim for it; come back when the claim is bound.

    The kubelet changes no ownership of such a volume, whatever a pod's fsGroup: hence the folder's mode.

    Raises:
        NotABedError: the nodes are other machines.
        ValueError: each node has a folder of its own of that name.
        StartError: the claim stays unbound.
    """
    cluster.inside("folders of this machine")
    if any(folder.resolve().is_relative_to(path) for path in OVERLAID):
        raise ValueError(f"{folder}: nodes do not share {', '.join(OVERLAID)}; use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {
            **shared,
            "capacity": {"storage": SIZE},
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": str(folder.resolve()), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }
    wanted = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**shared, "resources": {"requests": {"storage": SIZE}}, "volumeName": f"{namespace}-{name}"},
    }
    cluster.create(volume, wanted)
    deadline = time.monotonic() + BOUND_WITHIN_S
    while cluster.get("persistentvolumeclaim", name, "--namespace", namespace)["status"]["phase"] != "Bound":
        if time.monotonic() > deadline:
            raise StartError(f"claim {namespace}/{name} stays unbound for {BOUND_WITHIN_S} s")
        time.sleep(0.1)
