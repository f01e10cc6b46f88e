"""What has happened to a Job's pods since the last look, once each, in the words of its policies."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.controller.rules import SPEC, VERSION, Happening, annotation, going


@dataclass(frozen=True)
class _Known:
    """A pod that was there at the last look."""

    job: str
    task: str
    version: int
    name: str


class Happenings:
    """Compares looks; what has been found waits, in order, until it is asked for."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._ours: set[str] = set()
        self._told: set[tuple[object, ...]] = set()
        self._waiting: dict[str, list[Happening]] = {}

    def ours(self, pod: Json) -> None:
        """The controller deletes this pod itself, which is no eviction."""
        self._ours.add(pod["metadata"]["uid"])

    def forget(self, jobs: Collection[str]) -> None:
        """Everything of Jobs but these, by their uids."""
        self._known = {uid: known for uid, known in self._known.items() if known.job in jobs}
        self._waiting = {uid: found for uid, found in self._waiting.items() if uid in jobs}
        self._told = {told for told in self._told if told[0] in jobs}
        self._ours &= self._known.keys()

    def wanted(self, job: Json) -> tuple[Happening | None, str | None]:
        """The first of a Job's happenings for which a policy wants something, and what; those before it are over."""
        waiting = self._waiting.get(job["metadata"]["uid"], [])
        version = job["status"].get("version", 0)
        while waiting:
            happening = waiting.pop(0)
            action = rules.action(job["spec"], version, happening)
            if action is not None:
                return happening, action
        return None, None

    def look(self, job: Json, pods: Sequence[Json], group: Json | None) -> None:
        """Take in how it stands now; `pods` may hold some of an older Job of this name, which count for nothing."""
        uid = job["metadata"]["uid"]
        own = [pod for pod in pods if any(one["uid"] == uid for one in pod["metadata"].get("ownerReferences", ()))]
        for happening in (*self._gone(uid, own), *self._failed(uid, own), *self._of_tasks(job, uid, own)):
            self._waiting.setdefault(uid, []).append(happening)
        unknown = group is not None and group.get("status", {}).get("phase") == "Unknown"
        if unknown and self._first(uid, "Unknown"):
            # A PodGroup's change carries no version, which means the first.
            self._waiting.setdefault(uid, []).append(Happening("Unknown", "", 0))
        if not unknown:
            self._told.discard((uid, "Unknown"))

    def _first(self, *told: object) -> bool:
        before = told in self._told
        self._told.add(told)
        return not before

    def _gone(self, job: str, pods: Sequence[Json]) -> list[Happening]:
        there = {pod["metadata"]["uid"] for pod in pods}
        missing = [uid for uid, known in self._known.items() if known.job == job and uid not in there]
        found: list[Happening] = []
        for uid in missing:
            known = self._known.pop(uid)
            if uid not in self._ours:
                found.append(Happening("PodEvicted", known.task, known.version, pod=known.name))
            self._ours.discard(uid)
        for pod in pods:
            known = _Known(job, annotation(pod, SPEC), int(annotation(pod, VERSION)), pod["metadata"]["name"])
            self._known[pod["metadata"]["uid"]] = known
        return found

    def _failed(self, job: str, pods: Sequence[Json]) -> list[Happening]:
        return [
            Happening(
                "PodFailed",
                annotation(pod, SPEC),
                int(annotation(pod, VERSION)),
                _exit_code(pod),
                pod["metadata"]["name"],
            )
            for pod in pods
            # The containers of a pod that is deleted fail, too; when it is gone it has been evicted.
            if pod["status"]["phase"] == "Failed"
            and not going(pod)
            and self._first(job, "PodFailed", pod["metadata"]["uid"])
        ]

    def _of_tasks(self, job: Json, uid: str, pods: Sequence[Json]) -> list[Happening]:
        found: list[Happening] = []
        for task in job["spec"]["tasks"]:
            own = [pod for pod in pods if annotation(pod, SPEC) == task["name"]]
            if not own:
                continue
            version = max(int(annotation(pod, VERSION)) for pod in own)
            succeeded = [pod["metadata"]["uid"] for pod in own if pod["status"]["phase"] == "Succeeded"]
            if len(succeeded) >= task["replicas"] and self._first(uid, "TaskCompleted", *sorted(succeeded)):
                found.append(Happening("TaskCompleted", task["name"], version))
            again = rules.restarts(own, task["name"])
            if again >= task.get("maxRetry", 3) and self._first(uid, "TaskFailed", task["name"], version, again):
                found.append(Happening("TaskFailed", task["name"], version))
        return found


def _exit_code(pod: Json) -> int:
    """Of the first container alone."""
    for container in pod["status"].get("containerStatuses", ())[:1]:
        code: int = container.get("state", {}).get("terminated", {}).get("exitCode", 0)
        return code
    return 0
