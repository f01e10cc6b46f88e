"""Why a job does not run, in one line, from its objects. Pure.

The nearest cause wins: what a container waits for, then what the scheduler says of a pod, then what the job's kind
says of a job without pods. Volcano warns of healthy starts too, so a condition counts only while nothing newer
contradicts it.
"""

from collections.abc import Sequence
from itertools import islice

from launcher.kinds import Kind, ObjectEvents
from launcher.kinds.labels import CONTAINER
from launcher.kube.api import Json

_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
# The volumes of one pod most likely wait for what the others' wait for; each question is a request.
_PODS_ASKED = 3


def why_pending(
    kind: Kind, job: Json, pods: Sequence[Json], gang: Json | None, events: ObjectEvents, *, now: float
) -> str:
    """Return what keeps the job from running; empty if it is only starting.

    Args:
        gang: the object that schedules its pods together, if the kind has one.
        events: asked only where the objects themselves do not tell.
        now: seconds since 1970; controllers need a moment for a young object.
    """
    pending = (pod for pod in pods if pod.get("status", {}).get("phase") == "Pending")
    waiting = [pod for pod in pending if "deletionTimestamp" not in pod["metadata"]]
    reasons = (reason for read in (_container_reason, _scheduler_reason) for pod in waiting if (reason := read(pod)))
    if reason := next(reasons, "") or _volume_reason(waiting, events):
        count = f" ({len(waiting)} pods wait)" if len(waiting) > 1 else ""
        return " ".join(reason.split()) + count
    return "" if pods else kind.reason_without_pods(job, gang, events, now)


def container_failure(pod: Json) -> str:
    """Return how a container of the pod failed, like `exit code 137 (OOMKilled)`; empty if none failed."""
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    # A container from the overlay matters only if the trainer's did not fail.
    for container in sorted(containers, key=lambda container: container["name"] != CONTAINER):
        states = (container.get("state") or {}, container.get("lastState") or {})
        ended = next((state["terminated"] for state in states if state.get("terminated")), None)
        if ended and ended.get("exitCode"):
            reason = ended.get("reason")
            name = "" if container["name"] == CONTAINER else f"container {container['name']}: "
            return f"{name}exit code {ended['exitCode']}" + (f" ({reason})" if reason not in (None, "Error") else "")
    return str(status.get("reason") or "") if status.get("phase") == "Failed" else ""


def _container_reason(pod: Json) -> str:
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason")) and reason not in _STARTING:
            return f"{reason}: {waiting.get('message', '')}".strip(": ")
    return ""


def _scheduler_reason(pod: Json) -> str:
    for condition in pod.get("status", {}).get("conditions") or ():
        refused = condition["type"] == "PodScheduled" and condition["status"] == "False"
        if refused and condition.get("reason") != "Schedulable":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def _volume_reason(waiting: Sequence[Json], events: ObjectEvents) -> str:
    scheduled = (pod for pod in waiting if pod["spec"].get("nodeName"))
    for pod in islice(scheduled, _PODS_ASKED):
        for event in reversed(events(pod)):
            if event.get("reason") == "FailedMount":
                return str(event["message"])
    return ""
