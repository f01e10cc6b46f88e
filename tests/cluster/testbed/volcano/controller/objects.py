"""The PodGroup and the pods of a Volcano Job, as recorded on a real Volcano."""

import copy
from typing import Any

from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller.plugins import change_pod
from tests.cluster.testbed.volcano.quantities import Amounts

GROUP = "scheduling.k8s.io/group-name"


def owner(job: Json) -> list[Json]:
    """Return the owner reference by which an object is deleted with its Job."""
    metadata = job["metadata"]
    reference = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": metadata["name"]}
    return [reference | {"uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}]


def group_name(job: Json) -> str:
    """Return the name of the Job's PodGroup, which stays the same when the PodGroup is created again."""
    return f"{job['metadata']['name']}-{job['metadata']['uid']}"


def pod_name(job: Json, task: Json, index: int) -> str:
    """Return the name of a task's replica, counted from 0; it stays the same after each restart."""
    return f"{job['metadata']['name']}-{task['name']}-{index}"


def pod_group(job: Json) -> Json:
    """Return the PodGroup before the scheduler's first look."""
    spec, metadata = job["spec"], job["metadata"]
    described_metadata = {key: metadata[key] for key in ("labels", "annotations") if key in metadata}
    tasks = {task["name"]: task.get("minAvailable", task["replicas"]) for task in spec["tasks"]}
    group_spec: Json = {
        "minMember": spec.get("minAvailable", 0),
        "minTaskMember": tasks,
        "minResources": _least_resources(spec),
        "queue": spec.get("queue", "default"),
    }
    if "priorityClassName" in spec:
        group_spec["priorityClassName"] = spec["priorityClassName"]
    return {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "metadata": {"name": group_name(job), "ownerReferences": owner(job), **described_metadata},
        "spec": group_spec,
    }


def _least_resources(spec: Json) -> dict[str, str]:
    """Return the resources of the first `minAvailable` pods, by their requests.

    Requests that limits imply do not count. The duplicates are the names of a ResourceQuota.
    """
    total: Amounts = {}
    remaining = spec.get("minAvailable", 0)
    if not remaining:
        return {}
    count = remaining
    for task in spec["tasks"]:
        number = min(remaining, task["replicas"])
        remaining -= number
        pod = task["template"]["spec"]
        requests = quantities.requests_of(pod)
        doubles = {f"requests.{name}": value for name, value in requests.items()}
        limits = {
            f"limits.{name}": value for name, value in quantities.requests_of(pod, "limits").items() if "/" not in name
        }
        total = quantities.add(
            total, *(quantities.multiply(amounts, number) for amounts in (requests, doubles, limits))
        )
    resources = {name: quantities.to_text(value, resource=name) for name, value in total.items() if value}
    return resources | {"count/pods": str(count), "pods": str(count)}


def pod(job: Json, task: Json, index: int) -> Json:
    """Return one pod of a task."""
    metadata, spec, status = job["metadata"], job["spec"], job["status"]
    new_pod: Json = copy.deepcopy(task["template"])
    common = {
        "volcano.sh/job-name": metadata["name"],
        "volcano.sh/queue-name": spec.get("queue", "default"),
        "volcano.sh/task-index": str(index),
        "volcano.sh/task-spec": task["name"],
    }
    pod_metadata: dict[str, Any] = new_pod.setdefault("metadata", {})
    pod_metadata |= {"name": pod_name(job, task, index), "ownerReferences": owner(job)}
    pod_metadata["labels"] = {
        **pod_metadata.get("labels", {}),
        **common,
        "volcano.sh/job-namespace": metadata["namespace"],
    }
    pod_metadata["annotations"] = {
        **pod_metadata.get("annotations", {}),
        **common,
        GROUP: group_name(job),
        "volcano.sh/job-retry-count": str(status.get("retryCount", 0)),
        "volcano.sh/job-version": str(status.get("version", 0)),
        "volcano.sh/template-uid": f"{metadata['name']}-{task['name']}",
    }
    # Without the webhook the Job may have no scheduler, and the API server's own default applies.
    if "schedulerName" in spec:
        new_pod["spec"].setdefault("schedulerName", spec["schedulerName"])
    if "priorityClassName" in spec:
        new_pod["spec"].setdefault("priorityClassName", spec["priorityClassName"])
    change_pod(job, task, index, new_pod)
    return new_pod
