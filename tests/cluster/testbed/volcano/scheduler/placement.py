"""Which pods of a PodGroup fit on which nodes, all or nothing, and what is said of those that do not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.client import Json
from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.quantities import Amounts

NOT_ENOUGH = "tasks in gang unschedulable"


@dataclass(frozen=True)
class Room:
    """A node, and what is free on it."""

    node: Json
    free: Amounts


@dataclass(frozen=True)
class Fit:
    """Of one group, at one moment.

    Attributes:
        places: the waiting pods that fit, with their nodes' names.
        misfits: the others, with the reason why no node may have them; empty where only something is lacking.
        ready: whether those that fit are enough to start, or to go on.
        ready_number: the pods that have a node, or could have one.
    """

    places: tuple[tuple[Json, str], ...]
    misfits: tuple[tuple[Json, str], ...]
    ready: bool
    ready_number: int


def rooms(nodes: Iterable[Json], pods: Sequence[Json]) -> list[Room]:
    """The nodes with what pods that are not over leave free, by name."""
    found: list[Room] = []
    for node in sorted(nodes, key=lambda one: str(one["metadata"]["name"])):
        name = node["metadata"]["name"]
        here = [pod for pod in pods if pod["spec"].get("nodeName") == name and holds(pod)]
        taken = [quantities.added(quantities.asked(pod["spec"]), quantities.parsed({"pods": 1})) for pod in here]
        found.append(Room(node, quantities.without(quantities.parsed(node["status"].get("allocatable")), taken)))
    return found


def holds(pod: Json) -> bool:
    """Whether it still has what it asked for."""
    return pod["status"]["phase"] not in rules.SOFT


def waits(pod: Json) -> bool:
    """Whether this scheduler is to find a node for it."""
    spec = pod["spec"]
    return not spec.get("nodeName") and spec.get("schedulerName") == "volcano" and not rules.going(pod)


def fit(group: Json, pods: Sequence[Json], places: Sequence[Room]) -> Fit:
    """Try the group's waiting pods, in the order of their names, on the first node that can have each."""
    free = {room.node["metadata"]["name"]: dict(room.free) for room in places}
    found: list[tuple[Json, str]] = []
    misfits: list[tuple[Json, str]] = []
    for pod in sorted((one for one in pods if waits(one)), key=lambda one: str(one["metadata"]["name"])):
        asked = quantities.added(quantities.asked(pod["spec"]), quantities.parsed({"pods": 1}))
        reasons = {room.node["metadata"]["name"]: refusal(pod, room.node) for room in places}
        able = [name for name, why in reasons.items() if not why and not quantities.exceeding(asked, free[name])]
        if able:
            free[able[0]] = quantities.without(free[able[0]], [asked])
            found.append((pod, able[0]))
        else:
            misfits.append((pod, _all_refuse(list(reasons.values()))))
    there = [pod for pod in pods if _ready(pod)]
    together = [*there, *(pod for pod, _node in found)]
    least = group["spec"].get("minMember", 0)
    return Fit(
        tuple(found), tuple(misfits), len(together) >= least and _tasks_have_enough(group, together), len(together)
    )


def _ready(pod: Json) -> bool:
    if rules.going(pod):
        return False
    return bool(pod["status"]["phase"] == "Succeeded" or (pod["spec"].get("nodeName") and holds(pod)))


def _tasks_have_enough(group: Json, pods: Sequence[Json]) -> bool:
    least: Mapping[str, int] = group["spec"].get("minTaskMember") or {}
    if group["spec"].get("minMember", 0) < sum(least.values()):
        return True
    names = [rules.annotation(pod, rules.SPEC) for pod in pods]
    return all(names.count(task) >= number for task, number in least.items())


def _all_refuse(reasons: Sequence[str]) -> str:
    """Only where no node may have the pod is it said why: what a node lacks is never named."""
    if not all(reasons):
        return ""
    said = sorted(f"{reasons.count(reason)} node(s) {reason}" for reason in set(reasons))
    return f"0/{len(reasons)} nodes are unavailable: {', '.join(said)}."


def refusal(pod: Json, node: Json) -> str:
    """Why a node may not have a pod, however much is free on it; empty if it may. In kube-scheduler's words."""
    if node["spec"].get("unschedulable"):
        return "were unschedulable"
    labels = node["metadata"].get("labels", {})
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in wanted.items()) or not _affine(pod, node):
        return "didn't match Pod's node affinity/selector"
    for taint in node["spec"].get("taints", ()):
        tolerated = any(_tolerates(one, taint) for one in pod["spec"].get("tolerations", ()))
        if taint["effect"] != "PreferNoSchedule" and not tolerated:
            return f"had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    return ""


def _affine(pod: Json, node: Json) -> bool:
    labels, fields = node["metadata"].get("labels", {}), {"metadata.name": node["metadata"]["name"]}
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms")
    return terms is None or any(
        all(_matches(one, labels) for one in term.get("matchExpressions", ()))
        and all(_matches(one, fields) for one in term.get("matchFields", ()))
        for term in terms
    )


def _matches(expression: Mapping[str, Any], facts: Mapping[str, str]) -> bool:
    """By one of the six operators: the API server has refused a pod with another."""
    value, values = facts.get(expression["key"]), expression.get("values", ())
    match expression["operator"]:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return _is_whole(value) and int(value) > int(values[0])
        case _:
            return _is_whole(value) and int(value) < int(values[0])


def _is_whole(value: str | None) -> TypeGuard[str]:
    """A node whose label is no number is neither above nor below."""
    return value is not None and re.fullmatch(r"[-+]?[0-9]+", value) is not None


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect", taint["effect"]) != taint["effect"]:
        return False
    if toleration.get("operator") == "Exists":
        return bool(toleration.get("key", taint["key"]) == taint["key"])
    same: bool = (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))
    return same


def described(group: Json, pods: Sequence[Json], found: Fit) -> str:
    """How the group stands: `pod group is not ready, 2 Pending, 2 minAvailable; Pending: 2 Unschedulable`."""
    states = [_state(pod, found) for pod in pods]
    numbers = {state: states.count(state) for state in set(states)} | {
        "minAvailable": group["spec"].get("minMember", 0)
    }
    said = f"pod group is {'ready' if found.ready else 'not ready'}, {_sorted(numbers)}"
    able = 0 if found.ready else len(found.places)
    reasons = {"Schedulable": able, "Unschedulable": len(found.misfits)}
    if any(reasons.values()):
        said += f"; Pending: {_sorted({name: number for name, number in reasons.items() if number})}"
    origins = [f"{pod['metadata']['name']}: {why}" for pod, why in found.misfits if why]
    return f"{said}. Origin reason is {origins[0]}" if origins else said


def _sorted(numbers: Mapping[str, int]) -> str:
    return ", ".join(sorted(f"{number} {name}" for name, number in numbers.items()))


def _state(pod: Json, found: Fit) -> str:
    """A task's status in the scheduler's terms."""
    if rules.going(pod) and holds(pod):
        return "Releasing"
    if pod["status"]["phase"] != "Pending":
        state: str = pod["status"]["phase"]
        return state
    if pod["spec"].get("nodeName"):
        return "Bound"
    placed = any(pod is one for one, _node in found.places)
    return "Binding" if placed and found.ready else "Pending"
