"""The rules for a Volcano Job's next phase and for the actions of its policies; this module changes nothing.

They follow the recordings of a real Volcano and the states in its source (pkg/controllers/job/state, ed72c7c8).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.testbed.volcano.client import Json

ENDED = frozenset({"Completed", "Failed", "Terminated"})
"""The final phases."""
FINAL_PHASES = {"Aborting": "Aborted", "Terminating": "Terminated", "Completing": "Completed"}
"""The final phase of each phase that waits for the end of pods."""
ACTION_PHASES = {"AbortJob": "Aborting", "TerminateJob": "Terminating", "CompleteJob": "Completing"}
FINISHED = frozenset({"Succeeded", "Failed"})
"""The phases of pods that stay when a Job is killed softly."""
COUNTS = ("pending", "running", "succeeded", "failed", "unknown", "terminating")
SPEC, VERSION = "volcano.sh/task-spec", "volcano.sh/job-version"


@dataclass(frozen=True)
class JobEvent:
    """An event to which policies can react.

    Attributes:
        task: empty for an event of the whole Job.
        exit_code: of the pod's first container; 0 without a container.
        version: of the Job, when the pod was created.
        pod: the pod's name, if the event concerns a pod.
    """

    event: str
    task: str
    version: int
    exit_code: int = 0
    pod: str | None = None


def annotation(pod: Mapping[str, Any], name: str) -> str:
    """Return an annotation of a pod that the controller has created."""
    value: str = pod["metadata"]["annotations"][name]
    return value


def is_terminating(pod: Mapping[str, Any]) -> bool:
    """Return whether the pod has been deleted, though it may still run."""
    return "deletionTimestamp" in pod["metadata"]


def replicas(spec: Json) -> int:
    """Return the number of replicas of all tasks together."""
    return sum(task["replicas"] for task in spec["tasks"])


def action(spec: Json, version: int, event: JobEvent) -> str | None:
    """Return the action of the first matching policy: first the task's policies, then the Job's."""
    if event.version < version:
        return None
    task_policies = [task.get("policies") or [] for task in spec["tasks"] if task["name"] == event.task]
    for policies in (*task_policies, spec.get("policies") or []):
        for policy in policies:
            events = {*(policy.get("events") or ()), policy.get("event")}
            if {event.event, "*"} & events or 0 != policy.get("exitCode", 0) == event.exit_code:
                policy_action: str = policy["action"]
                return policy_action
    return None


def counts(pods: Iterable[Json]) -> Json:
    """Return the number of pods by phase, as in a Job's status, without zeros."""
    numbers: Json = {}
    tasks: dict[str, dict[str, dict[str, int]]] = {}
    for pod in pods:
        phase = pod["status"]["phase"]
        key = "terminating" if is_terminating(pod) else phase.lower()
        numbers[key] = numbers.get(key, 0) + 1
        if not is_terminating(pod):
            of_task = tasks.setdefault(annotation(pod, SPEC), {"phase": {}})["phase"]
            of_task[phase] = of_task.get(phase, 0) + 1
    return numbers | ({"taskStatusCount": tasks} if tasks else {})


def next_phase(spec: Json, status: Json) -> str:
    """Return the phase that follows from the counts in `status`, which may be the current one."""
    phase: str = status["state"]["phase"]
    minimum = spec.get("minAvailable", 0)
    number = {key: status.get(key, 0) for key in COUNTS}
    if phase == "Pending" and number["running"] + number["succeeded"] + number["failed"] >= minimum:
        return "Running"
    if phase == "Running":
        return _of_running(spec, status, number)
    if phase == "Restarting":
        if status.get("retryCount", 0) >= spec.get("maxRetry", 0):
            return "Failed"
        return "Pending" if replicas(spec) - number["terminating"] >= minimum else phase
    return phase


def _of_running(spec: Json, status: Json, number: Mapping[str, int]) -> str:
    total, minimum = replicas(spec), spec.get("minAvailable", 0)
    enough = spec.get("minSuccess")
    if total == 0:
        return "Running"
    if enough is not None and number["succeeded"] >= enough:
        return "Completed"
    if number["succeeded"] + number["failed"] == total:
        fewer = minimum >= task_minimum(spec) and any(
            _succeeded(status, task) < task["minAvailable"] for task in spec["tasks"] if "minAvailable" in task
        )
        return "Failed" if fewer or enough is not None or number["succeeded"] < minimum else "Completed"
    return "Pending" if number["pending"] > total - minimum else "Running"


def task_minimum(spec: Json) -> int:
    """Return the sum of the tasks' minimum numbers of pods."""
    return sum(task.get("minAvailable", task["replicas"]) for task in spec["tasks"])


def _succeeded(status: Json, task: Json) -> int:
    # A task without pods is not checked.
    phases = status.get("taskStatusCount", {}).get(task["name"], {}).get("phase")
    number: int = task["minAvailable"] if phases is None else phases.get("Succeeded", 0)
    return number


def stays(pod: Json, *, soft: bool, spec: Json, status: Json) -> bool:
    """Return whether a pod stays when its Job is killed: on the last retry, finished pods always stay."""
    last = status.get("retryCount", 0) >= spec.get("maxRetry", 0) - 1
    return (soft or last) and pod["status"]["phase"] in FINISHED


def count_restarts(pods: Sequence[Json], task: str) -> int:
    """Return the number of restarts of the containers of a task's unfinished pods."""
    return sum(
        container.get("restartCount", 0)
        for pod in pods
        if annotation(pod, SPEC) == task and pod["status"]["phase"] in {"Pending", "Running"}
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in pod["status"].get(kind, ())
    )


def duration(seconds: float) -> str:
    """Return a duration in Go's form: `14s`, `2m44s`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest}s"
