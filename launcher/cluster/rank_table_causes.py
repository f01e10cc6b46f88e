"""Why a job waits for its rank table: what MindCluster's parts have written so far, and which part has not. Pure.

The device plugin annotates each pod with its devices; then a controller writes the table into the ConfigMap; then the
kubelet of each node brings it into the pods, which takes up to 80 seconds (measured on the real controllers).
"""

import json
import re
from collections.abc import Iterator

from launcher.cluster.job_objects import JobObjects
from launcher.jobs import Cause
from launcher.kinds.labels import RING_CONTROLLER, rank_table_name
from launcher.kinds.needs import pod_amounts
from launcher.kinds.objects import annotations
from launcher.kube.api import Json

DEVICES = "ascend.kubectl.kubernetes.io/ascend-910-configuration"
"""Annotation: the devices that MindCluster's device plugin, or its scheduler, has given to a pod."""
_FILE = "hccl.json"
_WAITS = re.compile(rb"waiting for rank table [^\n]*|rank table [^\n]*: not completed within [^\n]*")
_OF_A_RANK = re.compile(rb"^\[rank \d", re.MULTILINE)
"""A line of a worker, which starts when the table is complete."""
_DOCUMENT = "ask the administrator of MindCluster"


def rank_table_causes(objects: JobObjects) -> Iterator[Cause]:
    """Find why a rank table is not complete while pods of the job wait for it."""
    words = [match[0].decode("utf-8", "replace") for log in objects.logs.values() if (match := _last_wait(log))]
    if not words or not objects.has_rank_table:
        return
    evidence = (words[-1], *_status_line(objects))
    yield Cause("rank-table", *_missing_part(objects, evidence))


def _lasting_fault(objects: JobObjects) -> tuple[str, str]:
    """Return why the table can never come, and the next step; empty if it can."""
    table, name = objects.rank_table, rank_table_name(objects.name)
    if table is None:
        return f"its ConfigMap {name} does not exist", "start the job again: its submit creates the ConfigMap"
    if table.get("immutable"):
        step = f"kubectl delete configmap {name}, then start the job again"
        return f"the ConfigMap {name} is immutable, so that no controller can write it", step
    if RING_CONTROLLER not in (objects.job["metadata"].get("labels") or {}):
        words = f"the job has no label {RING_CONTROLLER}, by which MindCluster's parts know it"
        return words, "start the job again with --mindcluster on"
    if {name for name in pod_amounts(objects.pod_spec) if "/" in name} - _requested(objects.pod_spec):
        words = "the pods have their NPUs as limits only, and ascend-operator needs requests"
        return words, "give requests equal to the limits in the --overlay"
    return "", ""


def _requested(pod: Json) -> set[str]:
    """Return the resources that the template itself requests: a limit counts as a request for the scheduler only."""
    containers = (*(pod.get("initContainers") or ()), *(pod.get("containers") or ()))
    return {name for item in containers for name in (item.get("resources") or {}).get("requests") or {}}


def _missing_part(objects: JobObjects, evidence: tuple[str, ...]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return which of MindCluster's parts has not done its work, the first one on the way of the table."""
    words, step = _lasting_fault(objects)
    if words:
        return f"the rank table never comes: {words}", evidence, (step,)
    without = [pod["metadata"]["name"] for pod in objects.pods if DEVICES not in annotations(pod)]
    if without:
        count = f"{len(without)} of {len(objects.pods)} pods"
        text = f"the rank table is not complete: MindCluster's device plugin has not written the devices of {count}"
        text += f", such as {without[0]}"
        steps = ("does the device plugin run on the pod's node, with -volcanoType=true?", _DOCUMENT)
        return text, evidence, steps
    for pod in objects.pods:
        if address := _bad_address(pod):
            text = f"the rank table is not complete: an NPU of pod {pod['metadata']['name']} has no address ({address})"
            return text, evidence, ("set the addresses of its network ports (hccn_tool -i N -ip -s …)", _DOCUMENT)
    if objects.rank_table is not None and _status(objects.rank_table) == "completed":
        text = "the rank table is complete, and has not reached the pods yet: a kubelet needs up to 80 s"
        return text, evidence, ("wait",)
    text = "the rank table is not complete: every pod has its devices, and MindCluster's controller does not write it"
    return text, evidence, ("does ascend-operator or hccl-controller run?", _DOCUMENT)


def _last_wait(log: bytes) -> re.Match[bytes] | None:
    """Return the trainer's last words about its wait; None if its workers have started after that."""
    matches = list(_WAITS.finditer(log))
    return matches[-1] if matches and not _OF_A_RANK.search(log, matches[-1].end()) else None


def _status(table: Json) -> str:
    try:
        return str(json.loads((table.get("data") or {}).get(_FILE, "{}"))["status"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unreadable"


def _status_line(objects: JobObjects) -> tuple[str, ...]:
    table = objects.rank_table
    return () if table is None else (f"configmap {table['metadata']['name']}: status {_status(table)}",)


def _bad_address(pod: Json) -> str:
    """Return the address of an NPU that is no address; empty if all are good, or the annotation cannot be read."""
    try:
        devices = json.loads(annotations(pod)[DEVICES])["devices"]
        addresses = [str(device.get("device_ip", "")) for device in devices]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return next((address or "empty" for address in addresses if address in ("", "-1")), "")
