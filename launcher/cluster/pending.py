"""Why a job does not run, in one line, from its objects. Pure.

The nearest cause wins: what a container waits for, then what the scheduler says of a pod, then what the job's kind
says of a job without pods. Volcano warns of healthy starts too, so a condition counts only while nothing newer
contradicts it. The scheduler counts nodes and does not name them: the nodes themselves say what to do.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from launcher.cluster.job_objects import device_of, held_containers, unplaced_message
from launcher.cluster.nodes import check_nodes, matching, obstacles_text
from launcher.cluster.schedulers import unseen_reason
from launcher.kinds import Kind, ObjectEvents, pod_template
from launcher.kinds.needs import PodNeeds
from launcher.kube.api import Json

Nodes = Callable[[], Sequence[Json] | None]
"""Returns all nodes; None if the user cannot see them."""

# The volumes of one pod most likely wait for what the others' wait for; each question is a request.
_PODS_ASKED = 3
# The user's next step for a scheduler's reason, if the user cannot see the nodes.
_ADVICE = (
    ("untolerated taint", "tolerate the taint with --toleration, or choose other nodes with --node-selector"),
    ("were unschedulable", "the administrator has cordoned them: wait, or ask for `kubectl uncordon`"),
    ("node affinity/selector", "check --node-selector and --hardware"),
    ("Insufficient ", "wait until other jobs end, or ask for less"),
)


def why_pending(
    kind: Kind,
    job: Json,
    pods: Sequence[Json],
    gang: Json | None,
    events: ObjectEvents,
    *,
    now: float,
    nodes: Nodes = lambda: None,
) -> str:
    """Return what keeps the job from running; empty if it is only starting.

    Args:
        gang: the object that schedules its pods together, if the kind has one.
        events: asked only where the objects themselves do not tell.
        now: seconds since 1970; controllers need a moment for a young object.
        nodes: asked only if the scheduler finds no node.
    """
    pending = (pod for pod in pods if pod.get("status", {}).get("phase") == "Pending")
    waiting = [pod for pod in pending if "deletionTimestamp" not in pod["metadata"]]
    readers = (_container_reason, partial(_scheduler_reason, nodes=nodes), partial(unseen_reason, now=now))
    reasons = (reason for read in readers for pod in waiting if (reason := read(pod)))
    if reason := next(reasons, "") or _volume_reason(waiting, events):
        count = f" ({len(waiting)} pods wait)" if len(waiting) > 1 else ""
        return " ".join(reason.split()) + count
    if pods:
        return ""
    reason = kind.reason_without_pods(job, gang, events, now)
    return _queued_reason(reason, kind, job, nodes()) if reason.startswith("queued") else reason


def _container_reason(pod: Json) -> str:
    return next((f"{reason}: {message}".strip(": ") for _, reason, message in held_containers(pod)), "")


def _scheduler_reason(pod: Json, nodes: Nodes) -> str:
    reason = unplaced_message(pod)
    return _unplaced_reason(reason, pod["spec"], nodes()) if reason else ""


def _unplaced_reason(reason: str, pod: Json, nodes: Sequence[Json] | None) -> str:
    """Add to a scheduler's reason which nodes it means, and what the user can do."""
    if nodes is None:
        advice = next((advice for words, advice in _ADVICE if words in reason), "")
    else:
        advice = obstacles_text(matching(nodes, pod), PodNeeds(pod, 1, device_of(pod)))
    return f"{reason}; {advice}" if advice else reason


def _queued_reason(reason: str, kind: Kind, job: Json, nodes: Sequence[Json] | None) -> str:
    """Add to a queue's reason why the nodes cannot take all pods of the job together, if it is so."""
    if nodes is None:
        return reason
    pod = pod_template(kind, job)["spec"]
    needs = PodNeeds(pod, int(job["spec"].get("minAvailable") or 1), device_of(pod))
    finding = check_nodes(matching(nodes, pod), needs)
    return f"{reason}; {finding.text}" if finding.state in ("later", "missing") else reason


def _volume_reason(waiting: Sequence[Json], events: ObjectEvents) -> str:
    scheduled = (pod for pod in waiting if pod["spec"].get("nodeName"))
    for pod in islice(scheduled, _PODS_ASKED):
        for event in reversed(events(pod)):
            if event.get("reason") == "FailedMount":
                return str(event["message"])
    return ""
