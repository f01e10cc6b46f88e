"""The defaults and the refusals of the webhooks for Jobs and Queues, in Volcano's words (pkg/webhooks, v1.12)."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller.plugins import KNOWN

EVENTS = ("*", "PodFailed", "PodEvicted", "PodPending", "Unknown", "TaskCompleted", "TaskFailed", "JobUpdated")
ACTIONS = ("AbortJob", "RestartJob", "RestartTask", "RestartPod", "TerminateJob", "CompleteJob", "ResumeJob")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def defaulted_job(job: Json) -> Json:
    """Return the Job with its defaults."""
    new_job = copy.deepcopy(job)
    spec = new_job["spec"]
    spec["queue"] = spec.get("queue") or "default"
    spec["schedulerName"] = spec.get("schedulerName") or "volcano"
    spec["maxRetry"] = spec.get("maxRetry") or 3
    for number, task in enumerate(spec.get("tasks") or ()):
        task["name"] = task.get("name") or f"default{number}"
        task["maxRetry"] = task.get("maxRetry") or 3
        task.setdefault("minAvailable", task.get("replicas", 0))
    spec["minAvailable"] = spec.get("minAvailable") or sum(task["minAvailable"] for task in spec.get("tasks") or ())
    return new_job


def defaulted_queue(queue: Json) -> Json:
    """Return the Queue with its defaults."""
    new_queue = copy.deepcopy(queue)
    spec = new_queue.setdefault("spec", {})
    spec["weight"] = spec.get("weight") or 1
    spec.setdefault("reclaimable", True)
    if queue["metadata"]["name"] != "root":
        spec["parent"] = spec.get("parent") or "root"
    return new_queue


def patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Json]:
    """Return the JSON patch of the members of `spec` that differ."""
    old = before.get("spec")
    if old is None:
        return [{"op": "add", "path": "/spec", "value": after["spec"]}]
    changed = {key: value for key, value in after["spec"].items() if key not in old or old[key] != value}
    return [{"op": "add", "path": f"/spec/{key}", "value": value} for key, value in changed.items()]


def job_refusal(job: Json, queues: Mapping[str, Json], templates: Mapping[int, str]) -> str:
    """Return why a new Job is refused; empty if it is not.

    Args:
        queues: all queues, by name.
        templates: the errors in the pod templates of tasks, by the tasks' numbers.
    """
    spec, name = job["spec"], job["metadata"]["name"]
    if spec.get("minAvailable", 0) < 0:
        return "job 'minAvailable' must be >= 0."
    if spec.get("maxRetry", 0) < 0:
        return "'maxRetry' cannot be less than zero."
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        return "'ttlSecondsAfterFinished' cannot be less than zero."
    tasks = spec.get("tasks") or []
    if not tasks:
        return "No task specified in job spec"
    faults = _tasks_refusal(name, tasks, templates)
    if not _NAME.fullmatch(name) or len(name) > 63:
        faults += f"create job with name {name} validate failed {_name_faults(name)}"
    if sum(task.get("replicas", 0) for task in tasks) < spec.get("minAvailable", 0):
        faults += " job 'minAvailable' should not be greater than total replicas in tasks;"
    faults += _policies_refusal(spec.get("policies") or [], "spec.policies")
    faults += "".join(
        f" unable to find job plugin: {plugin};" for plugin in spec.get("plugins") or () if plugin not in KNOWN
    )
    return (faults + _queue_refusal(spec.get("queue", "default"), queues)).strip()


def _tasks_refusal(job: str, tasks: list[Json], templates: Mapping[int, str]) -> str:
    faults, names = "", set()
    for number, task in enumerate(tasks):
        name, replicas, minimum = task["name"], task.get("replicas", 0), task.get("minAvailable")
        if replicas < 0:
            faults += f" 'replicas' < 0 in task: {name}, job: {job};"
        if minimum is not None and minimum < 0:
            faults += f" 'minAvailable' < 0 in task: {name}, job: {job};"
        elif minimum is not None and minimum > replicas:
            faults += f" 'minAvailable' is greater than 'replicas' in task: {name}, job: {job};"
        if not _LABEL.fullmatch(name):
            faults += f" [{_LABEL_FAULT}];"
        if name in names:
            return f"{faults} duplicated task name {name};"
        names.add(name)
        faults += _policies_refusal(task.get("policies") or [], "spec.tasks.policies")
        # Volcano checks the name with the task's number, not the pods' own numbers.
        pod = f"{job}-{name}-{number}"
        if len(pod) > 63 or not _NAME.fullmatch(pod):
            faults += f"create pod with name {pod} validate failed {_name_faults(pod)};"
        faults += templates.get(number, "")
    return faults


_LABEL_FAULT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_NAME_FAULT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def _name_faults(name: str) -> str:
    faults = ["name part must be no more than 63 characters"] if len(name) > 63 else []
    return f"[{' '.join([*faults, *([] if _NAME.fullmatch(name) else [_NAME_FAULT])])}]"


def _policies_refusal(policies: list[Json], where: str) -> str:
    faults = _policy_faults(policies, where)
    if not faults:
        return ""
    listed = "".join(f"\t* {fault}\n" for fault in faults)
    number = f"{len(faults)} error{'s' if len(faults) > 1 else ''} occurred"
    return f"{number}:\n{listed}\n valid events are [{' '.join(EVENTS)}], valid actions are [{' '.join(ACTIONS)}];"


def _policy_faults(policies: list[Json], where: str) -> list[str]:
    """Return the first fault, because Volcano stops there, and the fault that `*` has other events next to it."""
    events: set[str] = set()
    codes: set[int] = set()
    each = (fault for policy in policies for fault in _faults_of_policy(policy, where, events, codes))
    faults = list(itertools.islice(each, 1))
    if "*" in events and len(events) > 1:
        faults.append("if there's * here, no other policy should be here")
    return faults


def _faults_of_policy(policy: Json, where: str, events: set[str], codes: set[int]) -> Iterator[str]:
    """Yield a policy's faults; `events` and `codes` come from the policies before it, and grow."""
    policy_events = list(
        dict.fromkeys([*(policy.get("events") or ()), *([policy["event"]] if policy.get("event") else ())])
    )
    code, action = policy.get("exitCode"), policy.get("action", "")
    if policy_events and code is not None:
        yield "must not specify event and exitCode simultaneously"
    elif not policy_events and code is None:
        yield "either event and exitCode should be specified"
    if code == 0:
        yield "0 is not a valid error code"
    if code in codes:
        yield f"duplicate exitCode {code}"
    for event in policy_events:
        if event not in EVENTS:
            yield f'{where}: Invalid value: "{event}": invalid policy event'
        if action not in ACTIONS:
            yield f'{where}: Invalid value: "{action}": invalid policy action'
        if event in events:
            yield f"duplicate event {event}  across different policy"
        events.add(event)
    if code is not None:
        codes.add(code)


def _queue_refusal(name: str, queues: Mapping[str, Json]) -> str:
    if name not in queues:
        return f' unable to find job queue: queue.scheduling.volcano.sh "{name}" not found;'
    faults, state = "", queues[name].get("status", {}).get("state", "")
    if state != "Open":
        faults = f" can only submit job to queue with state `Open`, queue `{name}` status is `{state}`;"
    children = sum(queue["spec"].get("parent") == name for queue in queues.values())
    if name == "root":
        faults += " can not submit job to root queue;"
    elif children:
        faults += f" can only submit job to leaf queue, queue `{name}` has {children} child queues;"
    return faults


def update_refusal(old: Json, new: Json) -> str:
    """Return why a change of a Job is refused; empty if it is not."""
    return next(_faults_of_update(old["spec"], new["spec"]), "")


def _faults_of_update(before: Json, after: Json) -> Iterator[str]:
    tasks = after.get("tasks") or []
    for task in tasks:
        if task.get("replicas", 0) < 0:
            yield f"'replicas' must be >= 0 in task: {task['name']}"
        if task.get("minAvailable", 0) < 0:
            yield f"'minAvailable' must be >= 0 in task: {task['name']}"
        if task.get("minAvailable", 0) > task.get("replicas", 0):
            yield f"'minAvailable' must be <= 'replicas' in task: {task['name']}"
    if after.get("minAvailable", 0) > sum(task.get("replicas", 0) for task in tasks):
        yield "job 'minAvailable' must not be greater than total replicas"
    if after.get("minAvailable", 0) < 0:
        yield "job 'minAvailable' must be >= 0"
    if len(before.get("tasks") or ()) != len(tasks):
        yield "job updates may not add or remove tasks"
    if _unchangeable(before) != _unchangeable(after):
        yield "job updates may not change fields other than `minAvailable`, `tasks[*].replicas under spec`"


def _unchangeable(spec: Json) -> Json:
    tasks = [
        {key: value for key, value in task.items() if key not in {"replicas", "minAvailable"}}
        for task in spec.get("tasks") or ()
    ]
    rest = {key: value for key, value in spec.items() if key not in {"minAvailable", "priorityClassName", "tasks"}}
    return {**rest, "tasks": tasks}


def queue_refusal(queue: Json) -> str:
    """Return why a Queue is refused; empty if it is not."""
    faults = []
    state, weight = queue.get("status", {}).get("state", ""), queue.get("spec", {}).get("weight", 0)
    if state not in {"", "Open", "Closed"}:
        faults.append(f'requestBody.spec.state: Invalid value: "{state}": queue state must be in [Open Closed]')
    if weight <= 0:
        faults.append(f"requestBody.spec.weight: Invalid value: {weight}: queue weight must be a positive integer")
    return faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]" if faults else ""


def queue_deletion_refusal(name: str) -> str:
    """Return why a Queue must not be deleted; empty if it may be."""
    return f"`{name}` queue can not be deleted" if name in {"default", "root"} else ""
