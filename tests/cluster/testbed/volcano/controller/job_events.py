"""Find the events of a Job's pods since the last update, once each, in the words of the Job's policies."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.controller.rules import SPEC, VERSION, JobEvent, annotation, is_terminating


@dataclass(frozen=True)
class _KnownPod:
    """A pod that existed at the last update."""

    job: str
    task: str
    version: int
    name: str


class JobEvents:
    """Compare updates; the events found wait, in order, until `next_action`."""

    def __init__(self) -> None:
        self._known: dict[str, _KnownPod] = {}
        self._own_deletions: set[str] = set()
        self._reported: set[tuple[object, ...]] = set()
        self._pending: dict[str, list[JobEvent]] = {}

    def expect_deletion(self, pod: Json) -> None:
        """Note that the controller itself deletes this pod, so that the deletion does not count as an eviction."""
        self._own_deletions.add(pod["metadata"]["uid"])

    def keep_only(self, jobs: Collection[str]) -> None:
        """Forget all Jobs but these, by their uids."""
        self._known = {uid: known for uid, known in self._known.items() if known.job in jobs}
        self._pending = {uid: events for uid, events in self._pending.items() if uid in jobs}
        self._reported = {event_key for event_key in self._reported if event_key[0] in jobs}
        self._own_deletions &= self._known.keys()

    def next_action(self, job: Json) -> tuple[JobEvent | None, str | None]:
        """Return a Job's next event for which a policy has an action, and the action; drop the events before it."""
        pending = self._pending.get(job["metadata"]["uid"], [])
        version = job["status"].get("version", 0)
        while pending:
            event = pending.pop(0)
            action = rules.action(job["spec"], version, event)
            if action is not None:
                return event, action
        return None, None

    def update(self, job: Json, pods: Sequence[Json], group: Json | None) -> None:
        """Find the events since the last update; ignore the `pods` that belong to an older Job of the same name."""
        uid = job["metadata"]["uid"]
        own_pods = [
            pod for pod in pods if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", ()))
        ]
        for event in (
            *self._evictions(uid, own_pods),
            *self._failures(uid, own_pods),
            *self._task_events(job, uid, own_pods),
        ):
            self._pending.setdefault(uid, []).append(event)
        unknown = group is not None and group.get("status", {}).get("phase") == "Unknown"
        if unknown and self._is_new(uid, "Unknown"):
            # A PodGroup's change carries no version, which means the first.
            self._pending.setdefault(uid, []).append(JobEvent("Unknown", "", 0))
        if not unknown:
            self._reported.discard((uid, "Unknown"))

    def _is_new(self, *event_key: object) -> bool:
        is_known = event_key in self._reported
        self._reported.add(event_key)
        return not is_known

    def _evictions(self, job: str, pods: Sequence[Json]) -> list[JobEvent]:
        uids = {pod["metadata"]["uid"] for pod in pods}
        missing = [uid for uid, pod_record in self._known.items() if pod_record.job == job and uid not in uids]
        events: list[JobEvent] = []
        for uid in missing:
            pod_record = self._known.pop(uid)
            if uid not in self._own_deletions:
                events.append(JobEvent("PodEvicted", pod_record.task, pod_record.version, pod=pod_record.name))
            self._own_deletions.discard(uid)
        for pod in pods:
            pod_record = _KnownPod(job, annotation(pod, SPEC), int(annotation(pod, VERSION)), pod["metadata"]["name"])
            self._known[pod["metadata"]["uid"]] = pod_record
        return events

    def _failures(self, job: str, pods: Sequence[Json]) -> list[JobEvent]:
        return [
            JobEvent(
                "PodFailed",
                annotation(pod, SPEC),
                int(annotation(pod, VERSION)),
                _exit_code(pod),
                pod["metadata"]["name"],
            )
            for pod in pods
            # The containers of a deleted pod fail, too; when it is gone, it counts as evicted.
            if pod["status"]["phase"] == "Failed"
            and not is_terminating(pod)
            and self._is_new(job, "PodFailed", pod["metadata"]["uid"])
        ]

    def _task_events(self, job: Json, uid: str, pods: Sequence[Json]) -> list[JobEvent]:
        events: list[JobEvent] = []
        for task in job["spec"]["tasks"]:
            own_pods = [pod for pod in pods if annotation(pod, SPEC) == task["name"]]
            if not own_pods:
                continue
            version = max(int(annotation(pod, VERSION)) for pod in own_pods)
            succeeded = [pod["metadata"]["uid"] for pod in own_pods if pod["status"]["phase"] == "Succeeded"]
            if len(succeeded) >= task["replicas"] and self._is_new(uid, "TaskCompleted", *sorted(succeeded)):
                events.append(JobEvent("TaskCompleted", task["name"], version))
            restarts = rules.count_restarts(own_pods, task["name"])
            if restarts >= task.get("maxRetry", 3) and self._is_new(uid, "TaskFailed", task["name"], version, restarts):
                events.append(JobEvent("TaskFailed", task["name"], version))
        return events


def _exit_code(pod: Json) -> int:
    """Return the exit code of only the first container."""
    for container in pod["status"].get("containerStatuses", ())[:1]:
        code: int = container.get("state", {}).get("terminated", {}).get("exitCode", 0)
        return code
    return 0
