"""How a PodGroup stands after a cycle of the scheduler: its phase, its counts and its conditions."""

import uuid
from collections.abc import Sequence

from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.events import now


def placed(pods: Sequence[Json]) -> list[Json]:
    """Those that have a node and have not failed; one that is going holds its place until it is gone: as seen."""
    return [pod for pod in pods if pod["spec"].get("nodeName") and pod["status"]["phase"] != "Failed"]


def condition(group: Json, kind: str, reason: str, message: str) -> None:
    """Set one; it stays where it is in the list, and nothing takes it out again."""
    wanted = {"type": kind, "status": "True", "reason": reason} | ({"message": message} if message else {})
    conditions: list[Json] = group["status"].setdefault("conditions", [])
    for number, one in enumerate(conditions):
        if one["type"] == kind:
            if not wanted.items() <= one.items():
                conditions[number] = wanted | {"lastTransitionTime": now(), "transitionID": str(uuid.uuid4())}
            return
    conditions.append(wanted | {"lastTransitionTime": now(), "transitionID": str(uuid.uuid4())})


def follow(group: Json, pods: Sequence[Json], *, short: bool) -> None:
    """Write phase and counts, by the pods as they were before this cycle placed any; `short` is one that lacks pods."""
    status, least = group["status"], group["spec"].get("minMember", 0)
    number = {
        phase: sum(pod["status"]["phase"] == phase for pod in pods) for phase in ("Running", "Succeeded", "Failed")
    }
    allocated = placed(pods)
    running = [pod for pod in pods if pod["status"]["phase"] == "Running" and not rules.going(pod)]
    if running and short:
        status["phase"] = "Unknown"
    elif len(allocated) >= least:
        status["phase"] = "Completed" if number["Succeeded"] == len(allocated) else "Running"
    elif status["phase"] != "Inqueue":
        status["phase"] = "Pending"
    for phase, count in number.items():
        status.pop(phase.lower(), None)
        if count:
            status[phase.lower()] = count
