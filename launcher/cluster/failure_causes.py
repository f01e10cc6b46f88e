"""Why a job of a cluster failed: rules from its pods, their events and the end of their logs to causes. Pure.

An end from outside comes first, then the words of the rank that failed first. A rule looks at the last
try of each node only. To add a rule, enter it in `FAILURE_RULES`.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from launcher import PROGRAM
from launcher.cluster.events import event_time
from launcher.cluster.failures import container_failure, first_words, is_refusal, last_tries, log_failure, start_failure
from launcher.cluster.job_objects import JobObjects, containers_of, evidence_of, message_of
from launcher.jobs import Cause, Phase
from launcher.kinds.needs import amount_text, amounts
from launcher.kinds.objects import unix_time
from launcher.kube.api import Json
from launcher.output.lines import parse_lines
from launcher.output.log_causes import log_causes, of_last_attempt

_GONE = {"Preempted": "preempted", "Evicted": "evicted", "TaintManagerEviction": "evicted"}
# The condition DisruptionTarget: kubernetes.io/docs/concepts/workloads/pods/disruptions; the last one is our own.
_DISRUPTIONS = {
    "PreemptionByScheduler": ("preempted", "the scheduler ended it for a pod of higher priority"),
    "EvictionByEvictionAPI": ("evicted", "it was evicted, as by `kubectl drain`"),
    "DeletionByTaintManager": ("evicted", "its node got a taint that it does not tolerate, as a lost node does"),
    "DeletionByPodGC": ("node-lost", "its node is not in the cluster any more"),
    "TerminationByKubelet": ("evicted", "its node ended it: the node shuts down, or runs out of a resource"),
    "NodeIsSilent": ("node-lost", f"its node was silent, and `{PROGRAM} recover` deleted it"),
}
# A busy node can fail to notice that memory was the reason.
_KILLED = ": SIGKILL ended it, as when it needs more than its --memory"
_SHOWN_PODS = 3
_OUT_OF_TIME = "DeadlineExceeded"
_ADMISSION = re.compile(r"UnexpectedAdmissionError|NodeAffinity|OutOf\w+|Node\w*Shutdown")


def failed_pods(objects: JobObjects) -> list[Json]:
    """Return each node's last pod, if it failed; the first to end comes first."""
    return last_tries([pod for pod in objects.pods if container_failure(pod)])


def past_deadline(objects: JobObjects) -> Iterator[Cause]:
    """Find that the job's own deadline ended it."""
    reason = objects.kind.phase(objects.job, objects.pods)[1]
    if reason.startswith(_OUT_OF_TIME):
        step = f"{PROGRAM} submit --name {objects.name} --resume auto"
        yield Cause("deadline", "the job ran longer than its --deadline allows", (reason,), (step,))


def ended_from_outside(objects: JobObjects) -> Iterator[Cause]:
    """Find pods that the cluster or their node ended, or did not admit."""
    failed = failed_pods(objects)
    for pod in failed:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        node = pod["spec"].get("nodeName")
        conditions = status.get("conditions") or ()
        target: Json = next((item for item in conditions if item["type"] == "DisruptionTarget"), {})
        reason, message = str(status.get("reason") or ""), " ".join(str(status.get("message") or "").split())
        evidence = (f"pod {name} on node {node}: {target.get('reason') or reason}: {target.get('message') or message}",)
        if reason == "Evicted":
            yield Cause("evicted", f"node {node} evicted pod {name}: {message}", evidence, _evicted_steps(message))
        elif target.get("reason") in _DISRUPTIONS:
            rule, why = _DISRUPTIONS[target["reason"]]
            yield Cause(rule, f"pod {name} was ended from outside: {why}", evidence, _again(objects))
        elif _ADMISSION.match(reason):
            text = f"node {node} did not admit pod {name}: {reason}: {message}"
            yield Cause("admission", text, evidence, (f"kubectl describe node {node}",))
    # A pod that started after such an end has failed for another reason.
    begun = max((unix_time(pod["metadata"].get("creationTimestamp")) or 0.0 for pod in failed), default=0.0)
    gone = [event for event in objects.events_of_deleted_pods(*_GONE) if event_time(event) >= begun]
    for event in gone[-1:]:
        name = event["involvedObject"].get("name")
        rule = _GONE[event["reason"]]
        yield Cause(rule, f"pod {name} was {rule}: {message_of(event)}", (evidence_of(event),), _again(objects))


def out_of_memory(objects: JobObjects) -> Iterator[Cause]:
    """Find containers that the kernel ended because memory was short."""
    for pod in failed_pods(objects):
        for container in containers_of(pod):
            ended: Json = next(filter(None, (state.get("terminated") for state in _states(container))), {})
            if ended.get("reason") != "OOMKilled":
                continue
            name = container["name"]
            limit = _memory_limit(pod, name)
            evidence = (f"pod {pod['metadata']['name']}, container {name}: {container_failure(pod)}", *_words(objects))
            if limit:
                text = f"container {name} needed more memory than its limit of {limit}, and the kernel killed it"
                steps = ("give more --memory, or lower --batch-size and --workers",)
                yield Cause("out-of-memory", text, evidence, steps)
            else:
                text = f"node {pod['spec'].get('nodeName')} ran out of memory, and the kernel killed container {name}"
                yield Cause("node-out-of-memory", text, evidence, ("give --memory, so that the pod has its share",))
            return


def not_started(objects: JobObjects) -> Iterator[Cause]:
    """Find containers whose program the node or the system could not start."""
    for pod in failed_pods(objects):
        pod_name = pod["metadata"]["name"]
        failure = start_failure(pod) or log_failure(objects.logs.get(pod_name, b""))
        if failure:
            rule = "architecture" if "exec format error" in failure else "entry-point"
            cause, _, step = failure.partition("; ")
            evidence = (f"pod {pod_name}: {container_failure(pod)}",)
            yield Cause(rule, f"the container's program cannot start: {cause}", evidence, (step or "check --image",))
            return


def words_of_the_log(objects: JobObjects) -> Iterator[Cause]:
    """Find known errors of the devices, the words of the rank that failed first, and how often the job was tried."""
    failed = failed_pods(objects)
    words, _ = first_words(failed, objects.pods, _log_of(objects))
    tries = objects.kind.retries(objects.job) + (objects.phase is Phase.FAILED)
    often = f" (the last of {tries} tries)" if tries > 1 else ""
    evidence = tuple(f"pod {each['metadata']['name']}: {container_failure(each)}" for each in failed[:_SHOWN_PODS])
    rule = "refused-settings" if is_refusal(failed) else "crash-loop" if tries > 1 else "first-failure"
    steps = (f"{PROGRAM} logs {objects.name} --tail 50", *(f"kubectl describe pod {_name(pod)}" for pod in failed[:1]))
    logs = (parse_lines(objects.logs.get(_name(pod), b"")) for pod in failed or objects.pods)
    lines = (line for log in logs for line in of_last_attempt(log))
    yield from log_causes(Cause(rule, f"{words}{often}", evidence, steps) if words else None, lines)


def ended_pod(objects: JobObjects) -> Iterator[Cause]:
    """Find pods that failed and left no words, and jobs that failed without pods."""
    failed = failed_pods(objects)
    if first_words(failed, objects.pods, _log_of(objects))[0]:
        return
    phase, reason = objects.kind.phase(objects.job, objects.pods)
    for pod in failed[:1]:
        failure = container_failure(pod)
        killed = _KILLED if failure.endswith("exit code 137") else ""
        yield Cause(
            "pod-failed", f"pod {_name(pod)} failed: {failure}{killed}", (), (f"{PROGRAM} logs {objects.name}",)
        )
    if not failed and phase is Phase.FAILED:
        yield Cause(
            "job-failed", f"the job failed: {reason or 'the cluster does not say why'}", (), ("kubectl get events",)
        )


FAILURE_RULES: tuple[Callable[[JobObjects], Iterable[Cause]], ...] = (
    past_deadline,
    ended_from_outside,
    out_of_memory,
    not_started,
    words_of_the_log,
    ended_pod,
)
"""The rules for jobs that failed, and for the earlier tries of a job that waits."""


def _name(pod: Json) -> str:
    return str(pod["metadata"]["name"])


def _log_of(objects: JobObjects) -> Callable[[Json], bytes]:
    return lambda pod: objects.logs.get(_name(pod), b"")


def _words(objects: JobObjects) -> tuple[str, ...]:
    words, _ = first_words(failed_pods(objects), objects.pods, _log_of(objects))
    return (words,) if words else ()


def _states(container: Json) -> tuple[Json, Json]:
    return container.get("state") or {}, container.get("lastState") or {}


def _memory_limit(pod: Json, container: str) -> str:
    for item in (*(pod["spec"].get("initContainers") or ()), *(pod["spec"].get("containers") or ())):
        if item["name"] == container:
            limits = amounts((item.get("resources") or {}).get("limits"))
            return amount_text(limits["memory"]) if "memory" in limits else ""
    return ""


def _evicted_steps(message: str) -> tuple[str, ...]:
    if "ephemeral" in message or "disk" in message:
        return ("write less to the container's own disk, or ask the administrator for room on the node",)
    return ("give --memory and --cpu, so that the node evicts other pods first",)


def _again(objects: JobObjects) -> tuple[str, ...]:
    if objects.phase.ended:
        return (f"{PROGRAM} submit --name {objects.name} --resume auto",)
    return ("wait: the cluster starts it again, and it goes on from its last checkpoint",)
