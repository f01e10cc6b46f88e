"""Folders of this machine as claims that pods on every node can write to, like a shared file system's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.node_init import OVERLAYS

BOUND_WITHIN_S = 60
SIZE = "1Gi"
SHARED = ("ReadWriteMany",)


def claims(cluster: Cluster, namespace: str, folders: Mapping[str, Path], *, modes: Sequence[str] = SHARED) -> None:
    """Create the folders, writable for any user, and a claim for each; return when all claims are bound.

    Raises:
        NotABedError: the nodes are other machines.
        ValueError: the nodes do not share this folder.
        StartError: a claim stays unbound.
    """
    volume_objects = _volumes(cluster, namespace, folders, modes=modes, size=SIZE)
    cluster.create(*volume_objects, *(request(namespace, name, modes=modes) for name in folders))
    wait_until_bound(cluster, namespace, *folders)


def volumes(
    cluster: Cluster,
    namespace: str,
    folders: Mapping[str, Path],
    *,
    modes: Sequence[str] = SHARED,
    size: str = SIZE,
) -> None:
    """Create the folders, and volumes for claims of these names, if the claims ask for no more than `size`.

    The kubelet changes no ownership of such a volume, whatever a pod's fsGroup: therefore the folders are writable for
    all.

    Raises:
        NotABedError: the nodes are other machines.
        ValueError: the nodes do not share this folder.
    """
    cluster.create(*_volumes(cluster, namespace, folders, modes=modes, size=size))


def _volumes(
    cluster: Cluster, namespace: str, folders: Mapping[str, Path], *, modes: Sequence[str], size: str
) -> list[dict[str, Any]]:
    """Create the folders, and return the volumes to create."""
    cluster.inside("folders of this machine")
    for folder in folders.values():
        if any(folder.resolve().is_relative_to(path) for path in OVERLAYS):
            raise ValueError(f"{folder}: nodes do not share {', '.join(OVERLAYS)}; use another folder")
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
    """Return a claim, which stays unbound without a volume for it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": list(modes), "storageClassName": "", "resources": {"requests": {"storage": SIZE}}},
    }


def wait_until_bound(cluster: Cluster, namespace: str, *names: str) -> None:
    """Return when the claims are bound.

    Raises:
        StartError: a claim stays unbound.
    """
    options = ("--for=jsonpath={.status.phase}=Bound", f"--timeout={BOUND_WITHIN_S}s", "--namespace", namespace)
    cluster.kubectl("wait", *options, "persistentvolumeclaim", *names)
