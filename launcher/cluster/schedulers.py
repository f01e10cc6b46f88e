"""Whether the scheduler that a job's pods name does its work, by the traces that it leaves on pods. Pure.

A cluster has no list of its schedulers. A pod that no scheduler has looked at for some time proves that none does its
work. A pod that has a node proves that one did, not that it still does: that is never `ok`.
"""

from collections.abc import Sequence

from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.kinds.objects import is_young, unix_time
from launcher.kube.api import Json

DEFAULT = "default-scheduler"
SCHEDULER = "scheduler"
_RECENT_S = 3600.0


def unseen_reason(pod: Json, now: float) -> str:
    """Return that no scheduler has looked at a pod that is not young; empty if one has, or if it is young.

    Args:
        now: seconds since 1970.
    """
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    if spec.get("nodeName") or status.get("phase", "Pending") != "Pending" or is_young(pod, now):
        return ""
    if any(item["type"] == "PodScheduled" for item in status.get("conditions") or ()):
        return ""
    return f"no scheduler named {spec.get('schedulerName', DEFAULT)} has looked at it; is it running?"


def check_scheduler(name: str, pods: Sequence[Json], *, usual: bool, now: float) -> PreflightFinding:
    """Check a scheduler by the pods that name it.

    Args:
        usual: whether jobs of this kind have this scheduler unless an overlay names another.
        now: seconds since 1970.
    """
    for pod in pods:
        if reason := unseen_reason(pod, now):
            return PreflightFinding(SCHEDULER, "later", f"pod {pod['metadata']['name']} waits: {reason}")
    recent = any(now - time < _RECENT_S for time in filter(None, map(_scheduled, pods)))
    if recent or usual:
        did = "it has given a pod its node" if recent else "no pod that you can see got a node"
        text = f"{NOT_CHECKED}whether {name} runs now; {did} in the last hour"
        return PreflightFinding(SCHEDULER, "unknown", text)
    text = f"no sign of a scheduler named {name}: no pod that you can see got a node from it in the last hour"
    return PreflightFinding(SCHEDULER, "later", f"{text}; without it a job waits for ever: check the overlay")


def _scheduled(pod: Json) -> float | None:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    times = [item.get("lastTransitionTime") for item in conditions if item["type"] == "PodScheduled"]
    return unix_time(times[0]) if times and (pod.get("spec") or {}).get("nodeName") else None
