"""The objects of a cluster that decide about one job, and what they say now. Pure.

The rules of `causes` read them. An event tells of a moment: it counts only while no newer fact contradicts it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.cluster.events import event_time
from launcher.jobs import Phase, PreflightFinding
from launcher.kinds import Kind, pod_template
from launcher.kinds.labels import CONTAINER, JOB_LABEL, MANAGED, RANK_TABLE
from launcher.kinds.needs import PodNeeds, pod_amounts
from launcher.kinds.objects import clock_time, unix_time
from launcher.kube.api import Json

# A container that waits for these is only starting.
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_ENDED = ("Succeeded", "Failed")
_PLACED = "PodScheduled"


@dataclass(frozen=True)
class JobObjects:
    """A job, and the objects that decide whether it runs. None stands for what the user cannot see.

    Attributes:
        now: seconds since 1970.
        gang: the object that schedules the pods together, if the kind has one.
        events: of the job, its pods and its gang, oldest first.
        nodes: all nodes.
        others: the pods of other jobs that have a node, of the whole cluster if the user can see them.
        until: when other jobs are expected to end, by their names, in seconds since 1970.
        claims: the findings about the claims that the pods name.
        queue: the finding about the job's queue; None if the kind has no queue.
        queued: what a queue in front of the scheduler says of the job.
        report: what MindCluster says of the job.
        rank_table: the ConfigMap of the rank table; None if it does not exist.
        logs: the last lines of pods, by the names of the pods.
    """

    kind: Kind
    job: Json
    pods: Sequence[Json]
    now: float
    gang: Json | None = None
    events: Sequence[Json] = ()
    nodes: Sequence[Json] | None = None
    others: Sequence[Json] | None = None
    until: Mapping[str, float] = field(default_factory=dict)
    claims: Sequence[PreflightFinding] = ()
    queue: PreflightFinding | None = None
    queued: str = ""
    report: str = ""
    rank_table: Json | None = None
    logs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.job["metadata"]["name"])

    @property
    def phase(self) -> Phase:
        """The job's phase."""
        return self.kind.phase(self.job, self.pods)[0]

    @property
    def pod_spec(self) -> Json:
        """The spec of each pod."""
        return dict(pod_template(self.kind, self.job)["spec"])

    @property
    def has_rank_table(self) -> bool:
        """Whether MindCluster writes a rank table for the pods."""
        volumes = self.pod_spec.get("volumes") or ()
        return any(str((item.get("configMap") or {}).get("name", "")).startswith(RANK_TABLE) for item in volumes)

    @property
    def waiting(self) -> list[Json]:
        """The pods that have not started, and are not being deleted."""
        pending = (pod for pod in self.pods if pod.get("status", {}).get("phase") == "Pending")
        return [pod for pod in pending if "deletionTimestamp" not in pod["metadata"]]

    @property
    def unplaced(self) -> list[Json]:
        """The pods without a node."""
        return [pod for pod in self.waiting if not pod["spec"].get("nodeName")]

    @property
    def pod_count(self) -> int:
        """The number of pods that the job needs at the same time."""
        spec = self.job["spec"]
        return int(spec.get("minAvailable") or spec.get("parallelism") or 1)

    @property
    def needs(self) -> PodNeeds:
        """What the pods ask for that must get nodes together."""
        spec = self.pod_spec
        gang = int(self.job["spec"].get("minAvailable") or 0)
        count = gang - sum(map(uses_node, self.pods)) if gang else len(self.unplaced)
        return PodNeeds(spec, max(1, count), device_of(spec))

    def events_of(self, item: Json, *reasons: str) -> list[Json]:
        """Return the events of an object, oldest first; with reasons, only the events that have one of them."""
        uid = item["metadata"].get("uid")
        events = (event for event in self.events if event.get("involvedObject", {}).get("uid") == uid)
        return [event for event in events if not reasons or event.get("reason") in reasons]

    def events_of_deleted_pods(self, *reasons: str) -> list[Json]:
        """Return events with one of these reasons about pods that do not exist any more, oldest first."""
        alive = {pod["metadata"].get("uid") for pod in self.pods}
        return [
            event
            for event in self.events
            if event.get("reason") in reasons
            and event.get("involvedObject", {}).get("kind") == "Pod"
            and event["involvedObject"].get("uid") not in alive
        ]


def device_of(pod: Json) -> str:
    """Return the resource of the devices of a pod's spec; empty if it asks for no device."""
    return next((name for name in pod_amounts(pod) if "/" in name), "")


def unplaced_message(pod: Json) -> str:
    """Return why the scheduler finds no node for a pod; empty if it does not say so."""
    for condition in pod.get("status", {}).get("conditions") or ():
        refused = condition["type"] == _PLACED and condition["status"] == "False"
        if refused and condition.get("reason") != "Schedulable":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def placed_at(pod: Json) -> float:
    """Return when the pod got its node, in seconds since 1970; 0 if that is unknown."""
    conditions = pod.get("status", {}).get("conditions") or ()
    times = (unix_time(item.get("lastTransitionTime")) for item in conditions if item["type"] == _PLACED)
    return next(filter(None, times), 0.0)


def containers_of(pod: Json) -> Iterator[Json]:
    """Yield the statuses of a pod's containers, the first ones first."""
    status = pod.get("status", {})
    yield from (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))


def held_containers(pod: Json) -> Iterator[tuple[str, str, str]]:
    """Yield name, reason and message of each container of a pod that something keeps from starting."""
    for container in containers_of(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason")) and reason not in _STARTING:
            yield str(container.get("name", "")), str(reason), str(waiting.get("message", ""))


def has_started(pod: Json) -> bool:
    """Return whether the trainer's container of a pod has started."""
    states = [item.get("state") or {} for item in containers_of(pod) if item.get("name") == CONTAINER]
    return any(state.get("running") or state.get("terminated") for state in states)


def uses_node(pod: Json) -> bool:
    """Return whether a pod has a node and takes its part of it."""
    return bool(pod["spec"].get("nodeName")) and pod.get("status", {}).get("phase") not in _ENDED


def owner_of(pod: Json) -> str:
    """Return the job that a pod belongs to; the pod itself, if no launcher made it."""
    labels = pod["metadata"].get("labels") or {}
    ours = labels.items() >= MANAGED.items() and labels.get(JOB_LABEL)
    owners = pod["metadata"].get("ownerReferences") or ()
    if ours:
        return f"job {labels[JOB_LABEL]}"
    return f"{owners[0]['kind'].lower()} {owners[0]['name']}" if owners else f"pod {pod['metadata']['name']}"


def message_of(event: Json) -> str:
    """Return the message of an event in one line."""
    return " ".join(str(event.get("message", "")).split())


def evidence_of(event: Json) -> str:
    """Return an event as a line of evidence."""
    about = event.get("involvedObject", {})
    count = event.get("count") or 1
    times = f", {count} times" if count > 1 else ""
    subject = f"{about.get('kind', '')} {about.get('name', '')}".strip()
    when = clock_time(event_time(event))
    return f"event of {subject} at {when}{times}: {event.get('reason', '')}: {message_of(event)}"
