"""The annotations that the SIMULATED device plugin writes on a pod with NPUs, like Ascend's plugin of MindCluster 26.

The kubelet does not say for which pod it asks a plugin for devices. Ascend's plugin asks the kubelet afterwards
(`GetKltAndRealAllocateDev` in mind-cluster's ascend-device-plugin, over pod-resources). This one reads the checkpoint
in which the kubelet stores the same facts. The addresses of the devices are invented.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.testbed.api import Api, ApiError

CONFIGURATION = "ascend.kubectl.kubernetes.io/ascend-910-configuration"
REAL, ALLOCATED = "huawei.com/AscendReal", "huawei.com/kltDev"
CHECKPOINT = Path("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint")
INTERVAL_S = 0.1
USER = "ascend-device-plugin"
RIGHTS: tuple[Mapping[str, Any], ...] = (
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "pods-ascend-device-plugin-role-910"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "update", "patch"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "pods-ascend-device-plugin-rolebinding-910"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "pods-ascend-device-plugin-role-910",
        },
        "subjects": [{"kind": "User", "name": USER}],
    },
)


def annotations(pod: Mapping[str, Any], address: str, devices: Iterable[str]) -> dict[str, str]:
    """Return the annotations of `pod` on the node of this address, with these devices (`Ascend910-3`)."""
    chips = sorted(int(name.rpartition("-")[2]) for name in devices)
    names = ",".join(f"Ascend910-{chip}" for chip in chips)
    node = int(address.rpartition(".")[2])
    configuration = {
        "pod_name": pod["metadata"]["name"],
        "server_id": pod["metadata"]["uid"],
        "host_ip": address,
        "super_pod_id": -2,
        "devices": [
            # An Atlas 800 has its chips' ports in four subnets.
            {
                "device_id": str(chip),
                "device_ip": f"192.168.{100 + chip % 4}.{32 * node + chip}",
                "super_device_id": "0",
            }
            for chip in chips
        ],
        "rack_id": 0,
        "server_index": "-2",
        "server_ip": address,
    }
    return {CONFIGURATION: json.dumps(configuration, separators=(",", ":")), REAL: names, ALLOCATED: names}


class Annotator:
    """Write the annotations on each pod of one node, once."""

    def __init__(self, kubeconfig: Path, node: str, address: str, resource: str) -> None:
        self._api = Api(kubeconfig)
        self._node = node
        self._address = address
        self._resource = resource
        self._annotated: set[str] = set()

    def run(self) -> None:
        """Write annotations for ever."""
        while True:
            try:
                self._annotate()
            except ApiError as error:
                sys.stdout.write(f"not annotated, trying again: {error}\n")
                sys.stdout.flush()
                time.sleep(1)
            time.sleep(INTERVAL_S)

    def _annotate(self) -> None:
        allocated = self._allocated()
        if allocated.keys() <= self._annotated:
            return
        pods = self._api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={self._node}")["items"]
        for pod in pods:
            metadata = pod["metadata"]
            if metadata["uid"] in allocated and metadata["uid"] not in self._annotated:
                if REAL not in metadata.get("annotations", {}):
                    new_annotations = annotations(pod, self._address, allocated[metadata["uid"]])
                    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                    self._api.merge(path, {"metadata": {"uid": metadata["uid"], "annotations": new_annotations}})
                self._annotated.add(metadata["uid"])
        # The kubelet keeps a deleted pod in the checkpoint until its next allocation.
        self._annotated |= allocated.keys() - {pod["metadata"]["uid"] for pod in pods}

    def _allocated(self) -> dict[str, list[str]]:
        """Return the devices of each pod that has devices, by the pod's UID."""
        try:
            entries = json.loads(CHECKPOINT.read_text())["Data"]["PodDeviceEntries"] or ()
        except FileNotFoundError:
            return {}
        devices: dict[str, list[str]] = {}
        for entry in entries:
            if entry["ResourceName"] == self._resource:
                names = (name for numa in entry["DeviceIDs"].values() for name in numa)
                devices.setdefault(entry["PodUID"], []).extend(names)
        return devices
