"""The status of a PodGroup after a cycle of the scheduler: its phase, its counts and its conditions."""

import uuid
from collections.abc import Sequence

from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.events import timestamp


def placed_pods(pods: Sequence[Json]) -> list[Json]:
    """Return the pods with a node that have not failed; as recorded, a deleted pod holds its place until it is gone."""
    return [pod for pod in pods if pod["spec"].get("nodeName") and pod["status"]["phase"] != "Failed"]


def set_condition(group: Json, kind: str, reason: str, message: str) -> None:
    """Set a condition; it keeps its position in the list, and is never removed."""
    new_condition = {"type": kind, "status": "True", "reason": reason} | ({"message": message} if message else {})
    conditions: list[Json] = group["status"].setdefault("conditions", [])
    for number, existing in enumerate(conditions):
        if existing["type"] == kind:
            if not new_condition.items() <= existing.items():
                conditions[number] = new_condition | {
                    "lastTransitionTime": timestamp(),
                    "transitionID": str(uuid.uuid4()),
                }
            return
    conditions.append(new_condition | {"lastTransitionTime": timestamp(), "transitionID": str(uuid.uuid4())})


def update_status(group: Json, pods: Sequence[Json], *, short: bool) -> None:
    """Write phase and counts, by the pods before this cycle's placements; `short` means that the group lacks pods."""
    status, minimum = group["status"], group["spec"].get("minMember", 0)
    number = {
        phase: sum(pod["status"]["phase"] == phase for pod in pods) for phase in ("Running", "Succeeded", "Failed")
    }
    allocated = placed_pods(pods)
    running = [pod for pod in pods if pod["status"]["phase"] == "Running" and not rules.is_terminating(pod)]
    if running and short:
        status["phase"] = "Unknown"
    elif len(allocated) >= minimum:
        status["phase"] = "Completed" if number["Succeeded"] == len(allocated) else "Running"
    elif status["phase"] != "Inqueue":
        status["phase"] = "Pending"
    for phase, count in number.items():
        status.pop(phase.lower(), None)
        if count:
            status[phase.lower()] = count
