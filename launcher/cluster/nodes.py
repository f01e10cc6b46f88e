"""Whether the nodes of a cluster can take the pods of a job, and what keeps each node from it. Pure.

NPUs that other jobs use count: they come back, and a user cannot see other namespaces. To add an obstacle, write a
function from a node and the job's needs to an `Obstacle`, and enter it in `OBSTACLES`.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.kinds.needs import Amounts, PodNeeds, amount_text, amounts, listed
from launcher.kube.api import Json

NPUS = "NPUs"
_FLAGS = {"cpu": "--cpu", "memory": "--memory"}
# The node controller sets these taints from the node's conditions.
_OF_CONDITIONS = "node.kubernetes.io/"
_BLOCKING = frozenset({"NoSchedule", "NoExecute"})


class Obstacle(NamedTuple):
    """A reason why a node that is large enough takes no pod of the job now, and the rule of `explain` that it is."""

    text: str
    remedy: str
    rule: str


def check_nodes(nodes: Sequence[Json], needs: PodNeeds) -> PreflightFinding:
    """Check whether enough nodes can take a pod of the job.

    Args:
        nodes: the nodes with the labels that the pods select.
    """
    selector = (needs.pod.get("nodeSelector") or {}).items()
    labels = "".join(f"{' with ' if not index else ', '}{key}={value}" for index, (key, value) in enumerate(selector))
    wanted, capacities = needs.of_pod(), [capacity_of(node) for node in nodes]
    if needs.npus and not any(capacity.get(needs.resource) for capacity in capacities):
        text = f"no node{labels} has {needs.resource} now; a job waits until one comes"
        return PreflightFinding(NPUS, "later", text)
    if not nodes:
        return PreflightFinding(NPUS, "later", f"there is no node{labels} now; a job waits until one comes")
    large = [node for node, capacity in zip(nodes, capacities, strict=True) if not shortages(wanted, capacity)]
    if not large:
        return PreflightFinding(NPUS, "missing", _too_large(needs, capacities, labels))
    obstacles = find_obstacles(large, needs)
    free = [node for node in large if node["metadata"]["name"] not in obstacles]
    if sum(_pods_on(node, needs) for node in free) < needs.count:
        return PreflightFinding(NPUS, "later", _too_few(needs, len(free), len(large), obstacles, labels))
    text = f"{needs_text(needs)} on {len(free)} of {len(nodes)} nodes, free or in use"
    if _has_node_affinity(needs.pod):
        return PreflightFinding(NPUS, "unknown", f"{NOT_CHECKED}the node affinity of the overlay; without it, {text}")
    return PreflightFinding(NPUS, "ok", text)


def matching(nodes: Sequence[Json], pod: Json) -> list[Json]:
    """Return the nodes that have the labels that a pod selects."""
    selector = (pod.get("nodeSelector") or {}).items()
    return [node for node in nodes if selector <= (node["metadata"].get("labels") or {}).items()]


def obstacles_text(nodes: Sequence[Json], needs: PodNeeds) -> str:
    """Return what keeps nodes from taking a pod, apart from what other pods use; empty if nothing does."""
    finding = check_nodes(nodes, needs)
    if finding.state == "missing" or not nodes:
        return finding.text
    return "; ".join(_grouped(find_obstacles(nodes, needs))) or (finding.text if finding.state == "later" else "")


def find_obstacles(nodes: Sequence[Json], needs: PodNeeds) -> dict[str, Obstacle]:
    """Return the first reason why a node takes no pod of the job now, for the nodes that have one."""
    first = {
        node["metadata"]["name"]: next(filter(None, (find(node, needs) for find in OBSTACLES)), None) for node in nodes
    }
    return {name: obstacle for name, obstacle in first.items() if obstacle is not None}


def _not_ready(node: Json, _needs: PodNeeds) -> Obstacle | None:
    conditions = {item["type"]: item.get("status") for item in (node.get("status") or {}).get("conditions") or ()}
    if conditions.get("Ready", "True") == "True":
        return None
    return Obstacle("not ready", "wait, or ask the administrator (`kubectl describe node`)", "node-not-ready")


def _cordoned(node: Json, _needs: PodNeeds) -> Obstacle | None:
    if not (node.get("spec") or {}).get("unschedulable"):
        return None
    return Obstacle("cordoned", "wait, or ask the administrator for `kubectl uncordon`", "cordoned")


def _tainted(node: Json, needs: PodNeeds) -> Obstacle | None:
    tolerations = needs.pod.get("tolerations") or ()
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") not in _BLOCKING or any(_tolerates(item, taint) for item in tolerations):
            continue
        key, value = taint["key"], taint.get("value")
        if key.startswith(_OF_CONDITIONS):
            condition = key.removeprefix(_OF_CONDITIONS).replace("-", " ")
            return Obstacle(condition, "wait, or ask the administrator", "node-not-ready")
        word = f"{key}{f'={value}' if value else ''}:{taint['effect']}"
        return Obstacle(f"tainted {word}", f"choose other nodes, or tolerate it with --toleration {word}", "taint")
    return None


def _unhealthy(node: Json, needs: PodNeeds) -> Obstacle | None:
    """Find NPUs that the device plugin has withdrawn: the node still counts them, and gives them to no pod."""
    status = node.get("status") or {}
    capacity, allocatable = amounts(status.get("capacity")), amounts(status.get("allocatable"))
    for name, amount in needs.of_pod().items():
        healthy = allocatable.get(name, capacity.get(name, Decimal()))
        if healthy < amount <= capacity.get(name, Decimal()):
            text = f"only {amount_text(healthy)} of {amount_text(capacity[name])} {name} healthy"
            remedy = "ask for fewer, or ask the administrator to look at them (`npu-smi info`)"
            return Obstacle(text, remedy, "unhealthy-npu")
    return None


OBSTACLES: tuple[Callable[[Json, PodNeeds], Obstacle | None], ...] = (_not_ready, _cordoned, _tainted, _unhealthy)


def capacity_of(node: Json) -> Amounts:
    """Return what a pod can get on an empty, healthy node: the system has its share of cpu and memory only."""
    status = node.get("status") or {}
    capacity, allocatable = amounts(status.get("capacity")), amounts(status.get("allocatable"))
    return {**capacity, **{name: amount for name, amount in allocatable.items() if "/" not in name}}


def shortages(wanted: Amounts, capacity: Amounts) -> list[str]:
    """Return the resources of which a pod wants more than there is."""
    return [name for name, amount in wanted.items() if amount > capacity.get(name, Decimal())]


def _too_large(needs: PodNeeds, capacities: Sequence[Amounts], labels: str) -> str:
    """Return why no node is large enough, by the first resource of which every node has too little."""
    wanted = needs.of_pod()
    most = {name: max(capacity.get(name, Decimal()) for capacity in capacities) for name in wanted}
    short = [name for name, amount in wanted.items() if amount > most[name]]
    if not short:
        return f"no node{labels} has {needs_text(needs)} together: ask for less"
    name = needs.resource if needs.resource in short else short[0]
    limit = amount_text(most[name])
    if name == needs.resource:
        advice = f"ask for {limit} or fewer, on more --nodes"
        return f"--npus {needs.npus}: no node{labels} has more than {limit} {name}; {advice}"
    flag = _FLAGS.get(name, name)
    return f"{flag} {amount_text(wanted[name])}: no node{labels} has more than {limit} {name} for pods; ask for less"


def _too_few(needs: PodNeeds, free: int, large: int, obstacles: Mapping[str, Obstacle], labels: str) -> str:
    nodes = "1 node" if needs.count == 1 else f"{needs.count} nodes"
    text = f"the job needs {nodes}{labels} with {needs_text(needs)}, and {free} of {large} can take a pod now"
    causes = _grouped(obstacles)
    if large < needs.count and not shares_nodes(needs.pod):
        causes.append(f"the cluster has no more: ask for --nodes {large} or fewer")
    return f"{text}: {'; '.join(causes) or 'ask for less'}; a job waits until that changes"


def _grouped(obstacles: Mapping[str, Obstacle]) -> list[str]:
    """Return each obstacle once, after the nodes that have it."""
    groups: dict[Obstacle, list[str]] = {}
    for name, obstacle in obstacles.items():
        groups.setdefault(obstacle, []).append(name)
    return [f"{listed(names)} {obstacle.text} ({obstacle.remedy})" for obstacle, names in groups.items()]


def needs_text(needs: PodNeeds) -> str:
    """Return what one pod asks for, its devices first."""
    wanted = needs.of_pod()
    npus = {name: amount for name, amount in wanted.items() if name == needs.resource}
    return " and ".join(f"{amount_text(amount)} {name}" for name, amount in {**npus, **wanted}.items()) or "a pod"


def _pods_on(node: Json, needs: PodNeeds) -> int:
    """Return how many pods of the job fit on a node; the template puts the pods of a job on different nodes."""
    if not shares_nodes(needs.pod):
        return 1
    allocatable = amounts((node.get("status") or {}).get("allocatable"))
    return pods_in(allocatable, needs)


def pods_in(free: Amounts, needs: PodNeeds) -> int:
    """Return how many pods of the job fit into these amounts, of which some can be unknown."""
    fits = (int(free.get(name, amount) // amount) for name, amount in needs.of_pod().items() if amount)
    return max(0, min(fits, default=needs.count))


def shares_nodes(pod: Json) -> bool:
    """Return whether two pods of the job can be on one node."""
    anti_affinity = (pod.get("affinity") or {}).get("podAntiAffinity") or {}
    return not anti_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")


def _has_node_affinity(pod: Json) -> bool:
    node_affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    return bool(node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value") or "") == (taint["key"], taint.get("value") or "")
