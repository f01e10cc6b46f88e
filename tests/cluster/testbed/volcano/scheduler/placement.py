"""Find nodes for the pods of a PodGroup, all or nothing, and describe why pods do not fit."""

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
class NodeCapacity:
    """A node, and its free resources."""

    node: Json
    free: Amounts


@dataclass(frozen=True)
class Placement:
    """The placement of one group at one moment.

    Attributes:
        places: the waiting pods that fit, with their nodes' names.
        misfits: the other pods, with the reason why every node refuses them; empty if only resources are missing.
        ready: whether the pods that fit are enough to start, or to continue.
        ready_number: the number of pods that have a node, or could get one.
    """

    places: tuple[tuple[Json, str], ...]
    misfits: tuple[tuple[Json, str], ...]
    ready: bool
    ready_number: int


def node_capacities(nodes: Iterable[Json], pods: Sequence[Json]) -> list[NodeCapacity]:
    """Return the nodes with the resources that unfinished pods leave free, by name."""
    capacities: list[NodeCapacity] = []
    for node in sorted(nodes, key=lambda item: str(item["metadata"]["name"])):
        name = node["metadata"]["name"]
        pods_of_node = [pod for pod in pods if pod["spec"].get("nodeName") == name and holds_resources(pod)]
        requests = [
            quantities.add(quantities.requests_of(pod["spec"]), quantities.parse_all({"pods": 1}))
            for pod in pods_of_node
        ]
        capacities.append(
            NodeCapacity(node, quantities.subtract(quantities.parse_all(node["status"].get("allocatable")), requests))
        )
    return capacities


def holds_resources(pod: Json) -> bool:
    """Return whether the pod still holds its resources."""
    return pod["status"]["phase"] not in rules.FINISHED


def is_waiting(pod: Json) -> bool:
    """Return whether this scheduler must find a node for the pod."""
    spec = pod["spec"]
    return not spec.get("nodeName") and spec.get("schedulerName") == "volcano" and not rules.is_terminating(pod)


def place(group: Json, pods: Sequence[Json], capacities: Sequence[NodeCapacity]) -> Placement:
    """Try the group's waiting pods, in the order of their names, on the first node that accepts each."""
    free = {capacity.node["metadata"]["name"]: dict(capacity.free) for capacity in capacities}
    placed: list[tuple[Json, str]] = []
    misfits: list[tuple[Json, str]] = []
    for pod in sorted(
        (waiting_pod for waiting_pod in pods if is_waiting(waiting_pod)),
        key=lambda waiting_pod: str(waiting_pod["metadata"]["name"]),
    ):
        requests = quantities.add(quantities.requests_of(pod["spec"]), quantities.parse_all({"pods": 1}))
        reasons = {capacity.node["metadata"]["name"]: node_refusal(pod, capacity.node) for capacity in capacities}
        candidates = [
            name for name, why in reasons.items() if not why and not quantities.shortages(requests, free[name])
        ]
        if candidates:
            free[candidates[0]] = quantities.subtract(free[candidates[0]], [requests])
            placed.append((pod, candidates[0]))
        else:
            misfits.append((pod, _all_refuse(list(reasons.values()))))
    existing = [pod for pod in pods if _ready(pod)]
    all_pods = [*existing, *(pod for pod, _node in placed)]
    minimum = group["spec"].get("minMember", 0)
    return Placement(
        tuple(placed), tuple(misfits), len(all_pods) >= minimum and _tasks_have_enough(group, all_pods), len(all_pods)
    )


def _ready(pod: Json) -> bool:
    if rules.is_terminating(pod):
        return False
    return bool(pod["status"]["phase"] == "Succeeded" or (pod["spec"].get("nodeName") and holds_resources(pod)))


def _tasks_have_enough(group: Json, pods: Sequence[Json]) -> bool:
    minimums: Mapping[str, int] = group["spec"].get("minTaskMember") or {}
    if group["spec"].get("minMember", 0) < sum(minimums.values()):
        return True
    names = [rules.annotation(pod, rules.SPEC) for pod in pods]
    return all(names.count(task) >= number for task, number in minimums.items())


def _all_refuse(reasons: Sequence[str]) -> str:
    """Return the reason only if every node refuses the pod: a lack of resources is never described."""
    if not all(reasons):
        return ""
    texts = sorted(f"{reasons.count(reason)} node(s) {reason}" for reason in set(reasons))
    return f"0/{len(reasons)} nodes are unavailable: {', '.join(texts)}."


def node_refusal(pod: Json, node: Json) -> str:
    """Return why a node refuses a pod in spite of free resources, in kube-scheduler's words; empty if it does not."""
    if node["spec"].get("unschedulable"):
        return "were unschedulable"
    labels = node["metadata"].get("labels", {})
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in selector.items()) or not _affine(pod, node):
        return "didn't match Pod's node affinity/selector"
    for taint in node["spec"].get("taints", ()):
        tolerated = any(_tolerates(toleration, taint) for toleration in pod["spec"].get("tolerations", ()))
        if taint["effect"] != "PreferNoSchedule" and not tolerated:
            return f"had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    return ""


def _affine(pod: Json, node: Json) -> bool:
    labels, fields = node["metadata"].get("labels", {}), {"metadata.name": node["metadata"]["name"]}
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms")
    return terms is None or any(
        all(_matches(expression, labels) for expression in term.get("matchExpressions", ()))
        and all(_matches(expression, fields) for expression in term.get("matchFields", ()))
        for term in terms
    )


def _matches(expression: Mapping[str, Any], facts: Mapping[str, str]) -> bool:
    """Evaluate one of the six operators: the API server has refused a pod with another one."""
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
    """Return whether a label is a whole number; only then it can be greater or less."""
    return value is not None and re.fullmatch(r"[-+]?[0-9]+", value) is not None


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect", taint["effect"]) != taint["effect"]:
        return False
    if toleration.get("operator") == "Exists":
        return bool(toleration.get("key", taint["key"]) == taint["key"])
    matches: bool = (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))
    return matches


def describe(group: Json, pods: Sequence[Json], placement: Placement) -> str:
    """Describe the group: `pod group is not ready, 2 Pending, 2 minAvailable; Pending: 2 Unschedulable`."""
    states = [_state(pod, placement) for pod in pods]
    numbers = {state: states.count(state) for state in set(states)} | {
        "minAvailable": group["spec"].get("minMember", 0)
    }
    text = f"pod group is {'ready' if placement.ready else 'not ready'}, {_sorted(numbers)}"
    schedulable = 0 if placement.ready else len(placement.places)
    reasons = {"Schedulable": schedulable, "Unschedulable": len(placement.misfits)}
    if any(reasons.values()):
        text += f"; Pending: {_sorted({name: number for name, number in reasons.items() if number})}"
    origins = [f"{pod['metadata']['name']}: {why}" for pod, why in placement.misfits if why]
    return f"{text}. Origin reason is {origins[0]}" if origins else text


def _sorted(numbers: Mapping[str, int]) -> str:
    return ", ".join(sorted(f"{number} {name}" for name, number in numbers.items()))


def _state(pod: Json, placement: Placement) -> str:
    """Return a task's status in the scheduler's terms."""
    if rules.is_terminating(pod) and holds_resources(pod):
        return "Releasing"
    if pod["status"]["phase"] != "Pending":
        state: str = pod["status"]["phase"]
        return state
    if pod["spec"].get("nodeName"):
        return "Bound"
    is_placed = any(pod is placed_pod for placed_pod, _node in placement.places)
    return "Binding" if is_placed and placement.ready else "Pending"
