"""Why a job is not running, in one line, from its objects. Pure.

The nearest cause wins: what a container waits for, then what the scheduler says of a pod, then what Volcano says of
the gang. Volcano warns of healthy starts too, so that a condition counts only while nothing newer contradicts it.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from launcher.cluster.kinds import seconds
from launcher.kube.api import Json
from launcher.manifests.labels import CONTAINER

_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
YOUNG_S = 10.0
"""A job of this age has been looked at by whoever is to look at it: Volcano's scheduler does so once a second."""
# What one pod's volumes wait for, the others' wait for too, most likely; each question is a request.
_ASKED_PODS = 3

Events = Callable[[Json], Sequence[Json]]
"""The events of an object, oldest first."""


def why_pending(job: Json, pods: Sequence[Json], group: Json | None, events: Events, *, now: float) -> str:
    """What keeps the job, or nothing if it is only starting.

    Args:
        group: the PodGroup of a Volcano job.
        events: asked only where objects themselves do not tell.
        now: seconds since 1970; what has not been done for a young object will be.
    """
    waiting = [pod for pod in pods if pod.get("status", {}).get("phase") == "Pending" and not _leaving(pod)]
    told = (text for explain in (_container, _scheduler) for pod in waiting if (text := explain(pod)))
    if text := next(told, "") or _volume(waiting, events):
        return _counted(text, waiting)
    if pods:
        return ""
    if group is not None:
        return _gang(group, events, young=is_young(group, now))
    if job["apiVersion"].startswith("batch.volcano.sh") and not job.get("status"):
        return "" if is_young(job, now) else "Volcano's controller has not looked at it; is it running?"
    return _warning(job, events)


def is_young(item: Json, now: float) -> bool:
    """Whether an object may not have been looked at yet. Volcano makes a group anew at each restart."""
    created = seconds(item["metadata"].get("creationTimestamp"))
    return created is None or now - created <= YOUNG_S


def container_failure(pod: Json) -> str:
    """How the pod's container ended, if it did not end well: `exit code 137 (OOMKilled)`; or another that it has."""
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    # One that an overlay has brought matters if the trainer has nothing to say for itself.
    for one in sorted(containers, key=lambda one: one["name"] != CONTAINER):
        ended = (one.get("state") or {}).get("terminated") or (one.get("lastState") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            reason = ended.get("reason")
            whose = "" if one["name"] == CONTAINER else f"container {one['name']}: "
            return f"{whose}exit code {ended['exitCode']}" + (f" ({reason})" if reason not in (None, "Error") else "")
    return str(status.get("reason") or "") if status.get("phase") == "Failed" else ""


def _leaving(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _container(pod: Json) -> str:
    status = pod.get("status", {})
    for one in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (one.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason")) and reason not in _STARTING:
            return f"{reason}: {waiting.get('message', '')}".strip(": ")
    return ""


def _volume(waiting: Sequence[Json], events: Events) -> str:
    placed = (pod for pod in waiting if pod["spec"].get("nodeName"))
    for pod in islice(placed, _ASKED_PODS):
        for one in reversed(events(pod)):
            if one.get("reason") == "FailedMount":
                return str(one["message"])
    return ""


def _scheduler(pod: Json) -> str:
    for one in pod.get("status", {}).get("conditions") or ():
        if one["type"] == "PodScheduled" and one["status"] == "False" and one.get("reason") != "Schedulable":
            return str(one.get("message") or one.get("reason") or "")
    return ""


def _gang(group: Json, events: Events, *, young: bool) -> str:
    """Why it has no pods."""
    phase = (group.get("status") or {}).get("phase")
    if phase == "Pending":
        told = [one for one in events(group) if one.get("reason") == "Unschedulable" and one["type"] == "Normal"]
        return f"queued: {told[-1]['message']}" if told else "queued by Volcano"
    if young:
        return ""
    if not phase:
        return "Volcano's scheduler has not looked at it; is it running?"
    return "Volcano has admitted it, and has made no pods; does the namespace refuse them (Pod Security, a quota)?"


def _warning(job: Json, events: Events) -> str:
    warnings = [one for one in events(job) if one.get("type") == "Warning"]
    return str(warnings[-1].get("message", "")) if warnings else ""


def _counted(text: str, waiting: Sequence[Json]) -> str:
    return " ".join(text.split()) + (f" ({len(waiting)} pods wait)" if len(waiting) > 1 else "")
