"""Faults of a cluster that keep a job from running, or end it: a policy, volumes of one node, too little memory."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.support.terminal import Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed import storage
from tests.cluster.testbed.nodes.node import CGROUPS
from tests.cluster.testbed.nodes.processes import StartError

POLICY_MESSAGE = "this team runs no such job"
DRIVER = "block.example.com"
_SMALL_MEMORY = 32 * 2**20
GO = "/dev/shm/go"
# The container outlives the killed program: containerd can learn of the kill too late, and then calls the end an error.
EATS_MEMORY = "tail /dev/zero; sleep 2; exit 137"
"""A program that takes memory without end."""
EATS_MEMORY_LATER = f"until [ -e {GO} ]; do sleep 0.2; done; {EATS_MEMORY}"
"""A program that does so when the file GO exists."""


@contextmanager
def policy_against(terminal: Terminal, job: str) -> Iterator[None]:
    """Have the API server refuse the pods of a job by a policy; return when it does."""
    name = f"{terminal.namespace}-policy"
    label = "object.metadata.?labels['pnas/job'].orValue('')"
    kinds = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods", "configmaps"]}
    rule = {"expression": f"{label} != '{job}'", "message": POLICY_MESSAGE}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{**kinds, "operations": ["CREATE"]}]},
        "validations": [rule],
    }
    place = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": terminal.namespace}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": place}
    common = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    kind = "ValidatingAdmissionPolicy"
    terminal.cluster.create(
        {**common, "kind": kind, "spec": spec}, {**common, "kind": f"{kind}Binding", "spec": binding}
    )
    meta = {"name": "tried", "namespace": terminal.namespace, "labels": {"pnas/job": job}}
    tried = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
    try:
        until(lambda: _is_refused(terminal, tried), lambda: "the policy is not in force")
        yield
    finally:
        terminal.cluster.kubectl("delete", f"{kind}/{name}", f"{kind}Binding/{name}")


def _is_refused(terminal: Terminal, item: dict[str, Any]) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(item, file)
        file.flush()
        try:
            terminal.cluster.kubectl("create", "--dry-run=server", "--filename", file.name)
        except StartError as error:
            return POLICY_MESSAGE in str(error)
    return False


def create_volumes_of_one_node(terminal: Terminal) -> None:
    """Create two claims with volumes: `local` is on the first node, and `disk` can be attached to one node only."""
    place, mode = terminal.namespace, ("ReadWriteOnce",)
    host = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}]}
    kinds: dict[str, dict[str, Any]] = {
        "local": {
            "hostPath": {"path": str(terminal.cluster.folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [host]}},
        },
        "disk": {"csi": {"driver": DRIVER, "volumeHandle": f"{place}-disk"}},
    }
    for name, kind in kinds.items():
        common = {"accessModes": [*mode], "storageClassName": "", "capacity": {"storage": storage.SIZE}}
        spec = {**common, "claimRef": {"namespace": place, "name": name}, **kind}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{place}-{name}"}, "spec": spec}
        terminal.cluster.create(volume, storage.request(place, name, modes=mode))
    storage.wait_until_bound(terminal.cluster, place, *kinds)


def attach_disk(terminal: Terminal) -> None:
    """Say in place of the missing storage driver that the first node has the volume of the claim `disk`."""
    volume, found = f"{terminal.namespace}-disk", list[str]()

    def is_asked_for() -> bool:
        items = terminal.cluster.get("volumeattachments")["items"]
        found[:] = [
            item["metadata"]["name"] for item in items if item["spec"]["source"]["persistentVolumeName"] == volume
        ]
        return bool(found)

    until(is_asked_for)
    patch = ("--subresource=status", "--type=merge", "--patch", json.dumps({"status": {"attached": True}}))
    terminal.cluster.kubectl("patch", "volumeattachment", found[0], *patch)


def starve(terminal: Terminal, job: str) -> None:
    """Let a job without a memory limit, whose program is EATS_MEMORY_LATER, find no more memory on its node.

    The limit is on the group that the kubelet makes for the pod, as if the node had no more, so that this machine
    is in no danger. The kernel's kill and the kubelet's report are real.
    """
    (pod,) = terminal.pods(job)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    place = ("--namespace", terminal.namespace)
    terminal.cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", *place, "--timeout=120s")
    (group,) = (CGROUPS / "memory").glob(f"*/kubepods/*/pod{uid}")
    (group / "memory.limit_in_bytes").write_text(str(_SMALL_MEMORY))
    terminal.cluster.kubectl("exec", name, *place, "--", "touch", GO)


def memory_request(terminal: Terminal, share: float) -> str:
    """Return a share of the memory of the smallest node, as a quantity."""
    nodes = terminal.cluster.get("nodes")["items"]
    return f"{int(share * min(int(node['status']['allocatable']['memory'].removesuffix('Ki')) for node in nodes))}Ki"
