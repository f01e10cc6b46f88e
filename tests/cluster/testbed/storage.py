"""Folders of this machine as claims that pods on every node may write to, like a shared file system's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.node_init import OVERLAID

BOUND_WITHIN_S = 60
SIZE = "1Gi"
SHARED = ("ReadWriteMany",)


def claims(cluster: Cluster, namespace: str, folders: Mapping[str, Path], *, modes: Sequence[str] = SHARED) -> None:
    """Make the folders, which any user may then write to, and a claim for each; come back when all are bound.

    Raises:
        NotABedError: the nodes are other machines.
        ValueError: each node has a folder of its own of that name.
        StartError: a claim stays unbound.
    """
    there = _volumes(cluster, namespace, folders, modes=modes, size=SIZE)
    cluster.create(*there, *(request(namespace, name, modes=modes) for name in folders))
    wait_until_bound(cluster, namespace, *folders)


def volumes(
    cluster: Cluster,
    namespace: str,
    folders: Mapping[str, Path],
    *,
    modes: Sequence[str] = SHARED,
    size: str = SIZE,
) -> None:
    """Make the folders, and the volumes that claims of those names get, whoever makes these, if they ask for no more.

    The kubelet changes no ownership of such a volume, whatever a pod's fsGroup: hence the folders' mode.

    Raises:
        NotABedError: the nodes are other machines.
        ValueError: each node has a folder of its own of that name.
    """
    cluster.create(*_volumes(cluster, namespace, folders, modes=modes, size=size))


def _volumes(
    cluster: Cluster, namespace: str, folders: Mapping[str, Path], *, modes: Sequence[str], size: str
) -> list[dict[str, Any]]:
    """Make the folders; the volumes are still to be created."""
    cluster.inside("folders of this machine")
    for folder in folders.values():
        if any(folder.resolve().is_relative_to(path) for path in OVERLAID):
            raise ValueError(f"{folder}: nodes do not share {', '.join(OVERLAID)}; use another folder")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    common = {"accessModes": list(modes), "storageClassName": "", "capacity": {"storage": size}}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                **common,
                "claimRef": {"namespace": namespace, "name": name},
                "hostPath": {"path": str(folder.resolve()), "type": "Directory"},
                "persistentVolumeReclaimPolicy": "Retain",
            },
        }
        for name, folder in folders.items()
    ]


def request(namespace: str, name: str, *, modes: Sequence[str] = SHARED) -> dict[str, Any]:
    """A claim, which stays unbound where no volume is for it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": list(modes), "storageClassName": "", "resources": {"requests": {"storage": SIZE}}},
    }


def wait_until_bound(cluster: Cluster, namespace: str, *names: str) -> None:
    """Come back when the claims are bound.

    Raises:
        StartError: one stays unbound.
    """
    wanted = ("--for=jsonpath={.status.phase}=Bound", f"--timeout={BOUND_WITHIN_S}s", "--namespace", namespace)
    cluster.kubectl("wait", *wanted, "persistentvolumeclaim", *names)
