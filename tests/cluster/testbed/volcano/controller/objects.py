"""The PodGroup and the pods that a Job of Volcano is made into, as recorded on a real one."""

import copy
from typing import Any

from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller.plugins import change_pod
from tests.cluster.testbed.volcano.quantities import Amounts

GROUP = "scheduling.k8s.io/group-name"


def owner(job: Json) -> list[Json]:
    """The reference that lets an object go with its Job."""
    metadata = job["metadata"]
    reference = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": metadata["name"]}
    return [reference | {"uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}]


def group_name(job: Json) -> str:
    """Of the Job's PodGroup, which keeps its name when it is made anew."""
    return f"{job['metadata']['name']}-{job['metadata']['uid']}"


def pod_name(job: Json, task: Json, index: int) -> str:
    """Of one replica of a task, counted from 0; the same after each restart."""
    return f"{job['metadata']['name']}-{task['name']}-{index}"


def pod_group(job: Json) -> Json:
    """The PodGroup, before the scheduler has seen it."""
    spec, metadata = job["spec"], job["metadata"]
    described = {key: metadata[key] for key in ("labels", "annotations") if key in metadata}
    tasks = {task["name"]: task.get("minAvailable", task["replicas"]) for task in spec["tasks"]}
    wanted: Json = {
        "minMember": spec.get("minAvailable", 0),
        "minTaskMember": tasks,
        "minResources": _least_resources(spec),
        "queue": spec.get("queue", "default"),
    }
    if "priorityClassName" in spec:
        wanted["priorityClassName"] = spec["priorityClassName"]
    return {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "metadata": {"name": group_name(job), "ownerReferences": owner(job), **described},
        "spec": wanted,
    }


def _least_resources(spec: Json) -> dict[str, str]:
    """Of the first `minAvailable` pods, by requests alone: limits that imply requests are not seen.

    The names are those of a ResourceQuota, too, whence the doubles.
    """
    total: Amounts = {}
    left = spec.get("minAvailable", 0)
    if not left:
        return {}
    count = left
    for task in spec["tasks"]:
        number = min(left, task["replicas"])
        left -= number
        pod = task["template"]["spec"]
        asked = quantities.asked(pod)
        doubles = {f"requests.{name}": value for name, value in asked.items()}
        limits = {f"limits.{name}": value for name, value in quantities.asked(pod, "limits").items() if "/" not in name}
        total = quantities.added(total, *(quantities.times(one, number) for one in (asked, doubles, limits)))
    found = {name: quantities.written(value, resource=name) for name, value in total.items() if value}
    return found | {"count/pods": str(count), "pods": str(count)}


def pod(job: Json, task: Json, index: int) -> Json:
    """One pod of a task."""
    metadata, spec, status = job["metadata"], job["spec"], job["status"]
    made: Json = copy.deepcopy(task["template"])
    common = {
        "volcano.sh/job-name": metadata["name"],
        "volcano.sh/queue-name": spec.get("queue", "default"),
        "volcano.sh/task-index": str(index),
        "volcano.sh/task-spec": task["name"],
    }
    described: dict[str, Any] = made.setdefault("metadata", {})
    described |= {"name": pod_name(job, task, index), "ownerReferences": owner(job)}
    described["labels"] = {**described.get("labels", {}), **common, "volcano.sh/job-namespace": metadata["namespace"]}
    described["annotations"] = {
        **described.get("annotations", {}),
        **common,
        GROUP: group_name(job),
        "volcano.sh/job-retry-count": str(status.get("retryCount", 0)),
        "volcano.sh/job-version": str(status.get("version", 0)),
        "volcano.sh/template-uid": f"{metadata['name']}-{task['name']}",
    }
    # Without the webhook the Job may name none, and the API server's own default applies.
    if "schedulerName" in spec:
        made["spec"].setdefault("schedulerName", spec["schedulerName"])
    if "priorityClassName" in spec:
        made["spec"].setdefault("priorityClassName", spec["priorityClassName"])
    change_pod(job, task, index, made)
    return made
