"""When a Job of Volcano changes its phase, and which action a policy wants: decided, not done.

By what was recorded on a real one, and the states in its source (pkg/controllers/job/state, ed72c7c8).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.testbed.volcano.client import Json

ENDED = frozenset({"Completed", "Failed", "Terminated"})
"""The phases that are for good."""
ENDING = {"Aborting": "Aborted", "Terminating": "Terminated", "Completing": "Completed"}
"""Where a phase that waits for pods to go leads."""
WAYS = {"AbortJob": "Aborting", "TerminateJob": "Terminating", "CompleteJob": "Completing"}
SOFT = frozenset({"Succeeded", "Failed"})
"""The phases of pods that are kept when a Job is killed softly."""
COUNTS = ("pending", "running", "succeeded", "failed", "unknown", "terminating")
SPEC, VERSION = "volcano.sh/task-spec", "volcano.sh/job-version"


@dataclass(frozen=True)
class Happening:
    """What policies are asked about.

    Attributes:
        task: empty for what happens to the whole Job.
        exit_code: of the pod's first container; 0 where there is none.
        version: of the Job, when the pod was made.
        pod: its name, where it is about one.
    """

    event: str
    task: str
    version: int
    exit_code: int = 0
    pod: str | None = None


def annotation(pod: Mapping[str, Any], name: str) -> str:
    """Of a pod that the controller has made."""
    value: str = pod["metadata"]["annotations"][name]
    return value


def going(pod: Mapping[str, Any]) -> bool:
    """Whether it has been deleted, though it may still run."""
    return "deletionTimestamp" in pod["metadata"]


def replicas(spec: Json) -> int:
    """Of all tasks together."""
    return sum(task["replicas"] for task in spec["tasks"])


def action(spec: Json, version: int, happening: Happening) -> str | None:
    """What the first policy that fits wants: the task's own first, then the Job's."""
    if happening.version < version:
        return None
    own = [task.get("policies") or [] for task in spec["tasks"] if task["name"] == happening.task]
    for policies in (*own, spec.get("policies") or []):
        for policy in policies:
            events = {*(policy.get("events") or ()), policy.get("event")}
            if {happening.event, "*"} & events or 0 != policy.get("exitCode", 0) == happening.exit_code:
                wanted: str = policy["action"]
                return wanted
    return None


def counts(pods: Iterable[Json]) -> Json:
    """How many pods are in which phase, as in a Job's status; zeros are left out."""
    found: Json = {}
    tasks: dict[str, dict[str, dict[str, int]]] = {}
    for pod in pods:
        phase = pod["status"]["phase"]
        key = "terminating" if going(pod) else phase.lower()
        found[key] = found.get(key, 0) + 1
        if not going(pod):
            of_task = tasks.setdefault(annotation(pod, SPEC), {"phase": {}})["phase"]
            of_task[phase] = of_task.get(phase, 0) + 1
    return found | ({"taskStatusCount": tasks} if tasks else {})


def next_phase(spec: Json, status: Json) -> str:
    """The phase that follows from the counts in `status`, which may be the same."""
    phase: str = status["state"]["phase"]
    least = spec.get("minAvailable", 0)
    number = {key: status.get(key, 0) for key in COUNTS}
    if phase == "Pending" and number["running"] + number["succeeded"] + number["failed"] >= least:
        return "Running"
    if phase == "Running":
        return _of_running(spec, status, number)
    if phase == "Restarting":
        if status.get("retryCount", 0) >= spec.get("maxRetry", 0):
            return "Failed"
        return "Pending" if replicas(spec) - number["terminating"] >= least else phase
    return phase


def _of_running(spec: Json, status: Json, number: Mapping[str, int]) -> str:
    total, least = replicas(spec), spec.get("minAvailable", 0)
    enough = spec.get("minSuccess")
    if total == 0:
        return "Running"
    if enough is not None and number["succeeded"] >= enough:
        return "Completed"
    if number["succeeded"] + number["failed"] == total:
        fewer = least >= task_minimum(spec) and any(
            _succeeded(status, task) < task["minAvailable"] for task in spec["tasks"] if "minAvailable" in task
        )
        return "Failed" if fewer or enough is not None or number["succeeded"] < least else "Completed"
    return "Pending" if number["pending"] > total - least else "Running"


def task_minimum(spec: Json) -> int:
    """How many pods the tasks want at least, each for itself."""
    return sum(task.get("minAvailable", task["replicas"]) for task in spec["tasks"])


def _succeeded(status: Json, task: Json) -> int:
    # A task of which no pod is left is not judged.
    phases = status.get("taskStatusCount", {}).get(task["name"], {}).get("phase")
    number: int = task["minAvailable"] if phases is None else phases.get("Succeeded", 0)
    return number


def kept(pod: Json, *, soft: bool, spec: Json, status: Json) -> bool:
    """Whether a pod stays when its Job is killed: on the last try, those that have ended stay in any case."""
    last = status.get("retryCount", 0) >= spec.get("maxRetry", 0) - 1
    return (soft or last) and pod["status"]["phase"] in SOFT


def restarts(pods: Sequence[Json], task: str) -> int:
    """How often containers of a task's pods that are not over have been started again."""
    return sum(
        container.get("restartCount", 0)
        for pod in pods
        if annotation(pod, SPEC) == task and pod["status"]["phase"] in {"Pending", "Running"}
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in pod["status"].get(kind, ())
    )


def duration(seconds: float) -> str:
    """As Go writes one: `14s`, `2m44s`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest}s"
