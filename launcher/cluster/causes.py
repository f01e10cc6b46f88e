"""Why a job of a cluster does not run: rules from its objects to causes, the nearest cause first. Pure.

A rule yields a cause only if the objects prove it now: an event counts only while the object that it is about still
is in that state. To add a rule, write a function from `JobObjects` to causes, enter it in `WAITING_RULES`, and add a
row to the table in tests/unit/launcher/test_causes.py. `failure_causes` has the rules for jobs that failed.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from launcher import PROGRAM
from launcher.cluster.events import event_time
from launcher.cluster.failure_causes import FAILURE_RULES
from launcher.cluster.job_objects import (
    JobObjects,
    evidence_of,
    has_started,
    held_containers,
    message_of,
    placed_at,
    unplaced_message,
    uses_node,
)
from launcher.cluster.lost_nodes import lost_pods
from launcher.cluster.patterns import (
    CONTAINER_FAULTS,
    IMAGE_FAULTS,
    IMAGE_REASONS,
    MINDCLUSTER_FAULTS,
    VOLUME_FAULTS,
    Pattern,
    first_match,
)
from launcher.cluster.placement import placement_causes
from launcher.cluster.rank_table_causes import rank_table_causes
from launcher.cluster.refusals import OTHER_REFUSAL, POD_REFUSALS
from launcher.cluster.schedulers import unseen_reason
from launcher.jobs import Cause, Phase
from launcher.kinds.objects import is_young, unix_time
from launcher.kube.api import Json

# Volcano's words; without them a gang that waits in its queue waits for room in the cluster.
_QUEUE_IS_FULL = "queue resource quota insufficient"

_Rule = Callable[[JobObjects], Iterable[Cause]]


def find_causes(objects: JobObjects) -> list[Cause]:
    """Return why a job waits or failed, the nearest cause first; an empty list if nothing is wrong."""
    phase = objects.phase
    if phase is Phase.FAILED:
        rules: Iterable[_Rule] = (rank_table_causes, *FAILURE_RULES)
    elif phase.ended:
        rules = ()
    elif phase is Phase.PENDING:
        # A try that failed may be why there is another one.
        rules = (*WAITING_RULES, *FAILURE_RULES)
    else:
        rules = WAITING_RULES
    causes = [cause for rule in rules for cause in rule(objects)]
    if not causes and phase is Phase.PENDING:
        causes = list(words_of_the_kind(objects))
    return list({(cause.rule, cause.text): cause for cause in reversed(causes)}.values())[::-1]


def lost_node(objects: JobObjects) -> Iterator[Cause]:
    """Find pods whose nodes do not answer."""
    for pod in sorted(lost_pods(objects.pods, objects.now), key=lambda pod: not pod.deleted):
        text, _, _ = pod.describe(objects.name).partition("; `")
        steps = (f"{PROGRAM} recover {objects.name}",) if pod.deleted or pod.silent_since is None else ("wait",)
        yield Cause("node-lost", text, (f"pod {pod.name} on node {pod.node} (kubectl get node {pod.node})",), steps)


def held_container(objects: JobObjects) -> Iterator[Cause]:
    """Find what keeps a container from starting: its image, an object that it names, its program."""
    for pod in objects.waiting:
        for container, reason, message in held_containers(pod):
            words = " ".join(message.split())
            evidence = (f"pod {pod['metadata']['name']}, container {container}: {reason}: {words}".rstrip(": "),)
            if reason in IMAGE_REASONS:
                image = next((item["image"] for item in _containers(pod) if item["name"] == container), "")
                fault = first_match(IMAGE_FAULTS, f"{reason}: {words}")
                why = "" if fault is None else f": {fault.text}"
                text = f"node {pod['spec'].get('nodeName')} cannot get the image {image}{why}"
                step = "check --image" if fault is None else fault.step
                yield Cause("image" if fault is None else fault.rule, text, evidence, (step,))
            elif reason == "CrashLoopBackOff":
                text = f"container {container} ends again and again"
                yield Cause("crash-loop", text, evidence, (f"{PROGRAM} logs {objects.name}",))
            else:
                describe = f"kubectl describe pod {pod['metadata']['name']}"
                unknown = Pattern("", "container", f"the node says {words or reason}", describe)
                fault = first_match(CONTAINER_FAULTS, words) or unknown
                yield Cause(fault.rule, f"container {container} cannot start: {fault.text}", evidence, (fault.step,))


def unready_volume(objects: JobObjects) -> Iterator[Cause]:
    """Find volumes that keep pods from their nodes or from their start, and the claims behind them."""
    messages: dict[str, str] = {}
    for pod in objects.waiting:
        if (message := unplaced_message(pod)) and first_match(VOLUME_FAULTS, message):
            messages.setdefault(message, f"scheduler, of {pod['metadata']['name']}: {message}")
        if pod["spec"].get("nodeName") and not has_started(pod) and (event := _volume_event(objects, pod)):
            messages.setdefault(message_of(event), evidence_of(event))
    if not messages:
        return
    claims = [finding for finding in objects.claims if finding.state in ("missing", "later")]
    for message, evidence in messages.items():
        fault = first_match(VOLUME_FAULTS, message)
        lines = (evidence, *(finding.text for finding in claims))
        if fault is not None and (named := next(iter(claims), None)) and fault.rule == "claim":
            text = named.text if "does not exist" in fault.text else f"{fault.text}; {named.text}"
            yield Cause("claim", text, (evidence,), (fault.step,))
        elif fault is not None:
            yield Cause(fault.rule, fault.text, lines, (fault.step,))
        else:
            yield Cause("volume", f"a volume cannot be mounted: {message}", lines, ("kubectl get events",))


def unseen_by_scheduler(objects: JobObjects) -> Iterator[Cause]:
    """Find pods that no scheduler has looked at."""
    for pod in objects.waiting:
        if reason := unseen_reason(pod, objects.now):
            evidence = (f"pod {pod['metadata']['name']} has no condition PodScheduled",)
            steps = ("ask the administrator whether it runs, or take schedulerName out of the --overlay",)
            yield Cause("scheduler", reason, evidence, steps)
            return


def mindclusters_words(objects: JobObjects) -> Iterator[Cause]:
    """Find the words of MindCluster's scheduler: in its report, or in what the scheduler says of pods and gang."""
    messages = [objects.report, *map(unplaced_message, objects.unplaced), *_gang_messages(objects)]
    for message in filter(None, messages):
        words = " ".join(message.split())
        fault = first_match(MINDCLUSTER_FAULTS, words)
        if fault is not None or message == objects.report:
            text = f"MindCluster reports: {words}" if fault is None else fault.text
            step = "see the ConfigMap scheduling-exception-report in cluster-system" if fault is None else fault.step
            yield Cause("mindcluster", text, (words,), (step,))
            return


def unplaced_pods(objects: JobObjects) -> Iterator[Cause]:
    """Find why no node takes the pods; the scheduler's own words, if the nodes do not show it."""
    refused = [message for message in map(unplaced_message, objects.unplaced) if message]
    if not refused and not _waits_for_room(objects):
        return
    if refused and all(first_match((*VOLUME_FAULTS, *MINDCLUSTER_FAULTS), message) for message in refused):
        return
    causes = list(placement_causes(objects))
    yield from causes
    if not causes and refused:
        words = " ".join(refused[0].split())
        yield Cause("scheduler-words", f"the scheduler finds no node: {words}", (), (f"wait, or {_describe(objects)}",))


def refused_pods(objects: JobObjects) -> Iterator[Cause]:
    """Find why the cluster refuses pods of the job, as long as the job lacks pods."""
    alive = [pod for pod in objects.pods if pod.get("status", {}).get("phase") in ("Pending", "Running")]
    if len(alive) >= objects.pod_count:
        return
    warnings = [event for event in _later_than_pods(objects) if event.get("type") == "Warning" and _is_refusal(event)]
    for event in warnings[-1:]:
        message = message_of(event)
        refusal = next((row for row in POD_REFUSALS if re.search(row.pattern, message)), OTHER_REFUSAL)
        cause = message.partition(" is forbidden: ")[2] or message
        rule = refusal.about.replace(" ", "-") if refusal.about != "pods" else "pod-refused"
        yield Cause(rule, f"the cluster refuses the job's pods: {cause}", (evidence_of(event),), (refusal.advice,))


def waiting_queue(objects: JobObjects) -> Iterator[Cause]:
    """Find that the queue does not start the job."""
    if objects.queued:
        yield Cause("queue", objects.queued, (), (f"wait, or cancel it: {PROGRAM} cancel {objects.name}",))
    messages = _gang_messages(objects)
    full = [message for message in messages if _QUEUE_IS_FULL in message]
    finding, show = objects.queue, f"kubectl get {'localqueues' if objects.kind.queue_label else 'queues'}"
    if finding is not None and finding.state in ("missing", "later") and not any(map(uses_node, objects.pods)):
        yield Cause("queue", finding.text, tuple(messages[:1]), (show,))
    elif full:
        queue = objects.job["spec"].get("queue")
        text = f"queue {queue} has no room for the job now: {full[0]}"
        yield Cause("queue", text, (), ("wait, or choose another --queue", show))


def missing_controller(objects: JobObjects) -> Iterator[Cause]:
    """Find that a controller or a scheduler of the job's kind has not looked at the job."""
    reason = _kinds_words(objects)
    if reason.endswith("is it running?"):
        yield Cause("controller", reason, (), ("ask the administrator (`kubectl get pods --all-namespaces`)",))


def words_of_the_kind(objects: JobObjects) -> Iterator[Cause]:
    """Find what the job's kind says of a job without pods, if no rule knows better."""
    reason = _kinds_words(objects)
    if reason and not is_young(objects.job, objects.now):
        yield Cause("no-pods", reason, (), (_describe(objects),))


def suspended_job(objects: JobObjects) -> Iterator[Cause]:
    """Find that the job was suspended."""
    phase, reason = objects.kind.phase(objects.job, objects.pods)
    if phase is Phase.SUSPENDED:
        yield Cause("suspended", f"the job is {reason}", (), (_describe(objects),))


WAITING_RULES: tuple[_Rule, ...] = (
    lost_node,
    held_container,
    unready_volume,
    unseen_by_scheduler,
    suspended_job,
    waiting_queue,
    refused_pods,
    mindclusters_words,
    unplaced_pods,
    missing_controller,
    rank_table_causes,
)
"""The rules for jobs that have not ended, the nearest cause first."""


def _kinds_words(objects: JobObjects) -> str:
    if objects.pods or objects.queued:
        return ""

    def events(item: Json) -> list[Json]:
        return objects.events_of(item) if item is not objects.job else _later_than_pods(objects)

    reason = objects.kind.reason_without_pods(objects.job, objects.gang, events, objects.now)
    return " ".join(reason.split())


def _later_than_pods(objects: JobObjects) -> list[Json]:
    """Return the job's events since its controller last created a pod: earlier ones tell of what is over."""
    events = objects.events_of(objects.job)
    made = [unix_time(pod["metadata"].get("creationTimestamp")) or 0.0 for pod in objects.pods]
    made += [event_time(event) for event in events if event.get("reason") == "SuccessfulCreate"]
    return [event for event in events if event_time(event) >= max(made, default=0.0)]


def _volume_event(objects: JobObjects, pod: Json) -> Json | None:
    """Return the event that says best why a pod on a node has not all its volumes; None without one.

    The controller that attaches volumes says once why it cannot. Then the kubelet says again and again that it waits.
    """
    attached = max(map(event_time, objects.events_of(pod, "SuccessfulAttachVolume")), default=0.0)
    since = {"FailedMount": placed_at(pod), "FailedAttachVolume": max(placed_at(pod), attached)}
    events = [event for event in objects.events_of(pod, *since) if event_time(event) >= since[event["reason"]]]
    known = (event for event in reversed(events) if first_match(VOLUME_FAULTS, message_of(event)))
    return next(known, events[-1] if events else None)


def _is_refusal(event: Json) -> bool:
    message = message_of(event)
    known = any(re.search(row.pattern, message) for row in POD_REFUSALS)
    return known or event.get("reason") == "FailedCreate" or " is forbidden: " in message


def _containers(pod: Json) -> list[Json]:
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def _describe(objects: JobObjects) -> str:
    kind = str(objects.kind.resource)
    return f"kubectl describe {kind} {objects.name}"


def _gang_messages(objects: JobObjects) -> list[str]:
    """Return what the scheduler says of the gang, the newest first, while the gang waits."""
    gang = objects.gang
    if gang is None or (gang.get("status") or {}).get("phase") not in (None, "", "Pending", "Inqueue"):
        return []
    conditions = (gang.get("status") or {}).get("conditions") or ()
    told = [str(item.get("message", "")) for item in conditions if item.get("type") == "Unschedulable"]
    events = [message_of(event) for event in objects.events_of(gang, "Unschedulable")]
    return [*events[::-1], *told]


def _waits_for_room(objects: JobObjects) -> bool:
    """Return whether the scheduler holds the whole job back, so that it has no pods."""
    if objects.pods or objects.gang is None or objects.queue is None or objects.queue.state in ("missing", "later"):
        return False
    full = any(_QUEUE_IS_FULL in message for message in _gang_messages(objects))
    return (objects.gang.get("status") or {}).get("phase") == "Pending" and not full
