"""Pods on nodes that do not answer: what the user is told, and their deletion by force.

A pod is gone only when its node says so. If the node is dead, or cut off from the cluster, its pods stay for ever, and
no successor starts. The cluster cannot know whether the pod still runs there, so it asks a person. For a run of this
program the answer is simple: the lock of its folder keeps a pod that still runs from writing (trainer/run/lock.py).

The pods themselves tell enough for a user without the right to see nodes. A kubelet that ends a container says that
neither the container nor the pod is ready; only the cluster's node controller says so of a pod whose containers are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher import PROGRAM
from launcher.errors import ApiError, ConflictError
from launcher.kinds.objects import clock_time, unix_time
from launcher.kube.api import STRATEGIC_PATCH, Api, Json
from launcher.kube.resources import LEASES, NODES, PODS
from trainer.shared.durations import format_duration

LEASE_NAMESPACE = "kube-node-lease"
LEASE_WATCH_S = 12.0
"""A kubelet renews its lease every ten seconds."""
# The kubelet's and the server's own time, in addition to the pod's grace period.
_OVERDUE_S = 30.0


@dataclass(frozen=True)
class LostPod:
    """A pod whose node does not answer. Times are seconds since 1970.

    Attributes:
        silent_since: when the cluster noticed it; None if it has not.
        deleted: whether the cluster has given the pod up, and waits for its node to say that it has ended.
        overdue_since: when the pod should have ended; None if it should not have ended yet.
    """

    name: str
    uid: str
    node: str
    silent_since: float | None
    deleted: bool
    overdue_since: float | None

    def describe(self, job: str) -> str:
        """Return a line for the user that stays the same while nothing changes."""
        recover = (
            f"`{PROGRAM} recover {job}` deletes it by force if the node is silent, so that its successor can start"
        )
        if self.silent_since is None:
            since = clock_time(self.overdue_since or 0)
            return f"pod {self.name} should have ended at {since}, and node {self.node} does not say so; {recover}"
        silent = f"node {self.node} has not answered since {clock_time(self.silent_since)}"
        if self.deleted:
            return f"pod {self.name} cannot end, because its {silent}; {recover}"
        return f"{silent}, and pod {self.name} is on it: the cluster gives the pod up after --node-timeout"


def lost_pods(pods: Sequence[Json], now: float) -> Iterator[LostPod]:
    """Yield the pods whose nodes do not answer, as far as the pods tell.

    Args:
        now: seconds since 1970.
    """
    for pod in pods:
        meta, node = pod["metadata"], pod["spec"].get("nodeName")
        if not node or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        # The time by which it must have ended: its grace period is in it.
        deadline = unix_time(meta.get("deletionTimestamp"))
        overdue = deadline is not None and now - deadline > _OVERDUE_S
        silent_since = _silent_since(pod)
        if silent_since is not None or overdue:
            overdue_since = deadline if overdue else None
            deleted = deadline is not None
            yield LostPod(meta["name"], meta.get("uid", ""), node, silent_since, deleted, overdue_since)


def lost_reason(job: str, pods: Sequence[Json], now: float) -> str:
    """Return what to tell the user about the first such pod; one that cannot end comes first. Empty without one."""
    lost = sorted(lost_pods(pods, now), key=lambda pod: not pod.deleted)
    return lost[0].describe(job) if lost else ""


def delete_by_force(
    api: Api,
    job: str,
    pods: Sequence[Json],
    *,
    on_note: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete the job's pods that the cluster has given up, after it has shown that their nodes are silent.

    Args:
        on_note: called with a line for each wait and each deleted pod.

    Raises:
        ConflictError: no pod waits for a silent node.
        ApiError: a right is missing; the message names it.
    """
    given_up = [pod for pod in pods if "deletionTimestamp" in pod["metadata"] and pod["spec"].get("nodeName")]
    if not given_up:
        waits = "; ".join(pod.describe(job) for pod in lost_pods(pods, time.time()))
        raise ConflictError(
            f"job {job}: the cluster has given no pod up: {waits or 'its nodes answer'}; nothing deleted"
        )
    for node in sorted({pod["spec"]["nodeName"] for pod in given_up}):
        names = [pod["metadata"]["name"] for pod in given_up if pod["spec"]["nodeName"] == node]
        silence = _prove_silence(api, node, names, on_note=on_note, sleep=sleep)
        for pod in given_up:
            if pod["spec"]["nodeName"] == node:
                _mark_failed(api, pod)
                api.delete(PODS, pod["metadata"]["name"], uid=pod["metadata"]["uid"], force=True)
                on_note(f"pod {pod['metadata']['name']} deleted by force: {silence}")


def _mark_failed(api: Api, pod: Json) -> None:
    """Say in place of the pod's node that it has ended, as the cluster's collector of garbage does.

    A Kubernetes Job replaces only pods that have failed (`podReplacementPolicy: Failed`), and keeps the object of any
    other one. The condition says that the failure is no fault of the job.
    """
    meta = pod["metadata"]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "NodeIsSilent",
        "message": f"{PROGRAM} recover",
    }
    body: Json = {"metadata": {"uid": meta["uid"]}, "status": {"phase": "Failed", "conditions": [condition]}}
    path = PODS.path(api.namespace, meta["name"], "status")
    api.request("PATCH", path, body=body, content_type=STRATEGIC_PATCH, action=f"patch {PODS}/status {meta['name']}")


def _prove_silence(
    api: Api, node: str, pods: Sequence[str], *, on_note: Callable[[str], None], sleep: Callable[[float], None]
) -> str:
    """Return how it is known that the node is silent.

    Raises:
        ConflictError: it answers.
    """
    names = ", ".join(pods)
    advice = f"pod {names} ends by itself within its grace period; if not, ask the administrator to look at this node"
    item = api.find(NODES, node)
    if item is None:
        return f"node {node} is not in the cluster any more"
    ready: Json = next((each for each in item["status"].get("conditions", ()) if each["type"] == "Ready"), {})
    if ready.get("status") != "Unknown":
        raise ConflictError(f"node {node} answers (its condition Ready is {ready.get('status')}): {advice}")
    since = format_duration(max(0.0, time.time() - (unix_time(ready.get("lastTransitionTime")) or time.time())))
    renewed = _renew_time(api, node)
    on_note(f"node {node} has been silent for {since}; watching its lease for {LEASE_WATCH_S:g} s more …")
    sleep(LEASE_WATCH_S)
    if _renew_time(api, node) != renewed:
        raise ConflictError(f"node {node} answers again (it has renewed its lease): {advice}")
    return f"node {node} has been silent for {since}, and has not renewed its lease since {renewed or 'it was removed'}"


def _renew_time(api: Api, node: str) -> str:
    """Return when the node's kubelet renewed its lease, by the node's own clock; empty if the lease is gone."""
    path = LEASES.path(LEASE_NAMESPACE, node)
    try:
        lease = api.request("GET", path, action=f"get {LEASES}")
    except ApiError as error:
        if error.status == 404:
            return ""
        raise
    return str(lease.get("spec", {}).get("renewTime", ""))


def _silent_since(pod: Json) -> float | None:
    conditions = {item["type"]: item for item in pod.get("status", {}).get("conditions") or ()}
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    if ready.get("status") == "True" or containers.get("status") != "True":
        return None
    if ready.get("reason") == "ReadinessGatesNotReady":  # its node answers, and something else is not ready
        return None
    return unix_time(ready.get("lastTransitionTime"))
