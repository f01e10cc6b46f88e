"""Why the nodes of a cluster take no pod of a job now: which nodes, what keeps each, and which jobs hold the devices.

Pure. The scheduler counts nodes and does not name them, so the nodes and the pods on them are counted here. Reasons
that last come before reasons that pass.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from launcher import PROGRAM
from launcher.cluster.job_objects import JobObjects, owner_of, unplaced_message, uses_node
from launcher.cluster.nodes import capacity_of, find_obstacles, matching, needs_text, pods_in, shares_nodes, shortages
from launcher.jobs import Cause
from launcher.kinds.needs import Amounts, PodNeeds, amount_text, amounts, listed, pod_amounts
from launcher.kinds.objects import clock_time
from launcher.kube.api import Json

_SHOWN = 6
_NOTHING = Decimal()
# Without the right to see nodes: the scheduler's words, the rule, and the user's next step.
_SCHEDULERS_WORDS = (
    ("untolerated taint", "taint", "tolerate the taint with --toleration, or choose other nodes with --node-selector"),
    ("were unschedulable", "cordoned", "wait, or ask the administrator for `kubectl uncordon`"),
    ("node affinity/selector", "node-selector", "check --node-selector and --hardware"),
    (r"Insufficient [\w.-]+/", "devices-in-use", "wait until other jobs end, or ask for fewer --npus"),
    ("Insufficient ", "resources-in-use", "wait until other jobs end, or ask for less"),
)


class NodeUse(NamedTuple):
    """The use of a node: its scarcest resource for the job, which jobs have it, and how many pods still fit."""

    node: str
    resource: str
    free: Decimal
    total: Decimal
    holders: Amounts
    fits: int


def placement_causes(objects: JobObjects) -> Iterator[Cause]:
    """Yield why no node takes a pod of the job now; nothing if nodes have room for all that must start together."""
    evidence, needs = _scheduler_evidence(objects), objects.needs
    if objects.nodes is None:
        yield from _from_schedulers_words(objects, evidence)
        return
    suitable = matching(objects.nodes, needs.pod)
    lasting = _lasting_cause(objects.nodes, suitable, replace(needs, count=objects.pod_count), evidence)
    if lasting is not None:
        yield lasting
        return
    large = [node for node in suitable if not shortages(needs.of_pod(), capacity_of(node))]
    obstacles = find_obstacles(large, needs)
    uses = list(_node_uses([node for node in large if node["metadata"]["name"] not in obstacles], objects, needs))
    if sum(use.fits for use in uses) >= needs.count:
        return
    if uses:
        yield _in_use(objects, needs, uses, len(large), evidence)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, (text, remedy, rule) in obstacles.items():
        groups.setdefault((rule, text, remedy), []).append(name)
    for (rule, text, remedy), names in groups.items():
        several = len(names) > 1
        verb = ("have" if several else "has") if rule == "unhealthy-npu" else ("are" if several else "is")
        cause = f"{listed(names)} {verb} {text}, and {'take' if several else 'takes'} no pod of the job"
        yield Cause(rule, cause, evidence, (remedy, f"kubectl describe node {names[0]}"))


def _lasting_cause(
    nodes: Sequence[Json], suitable: Sequence[Json], needs: PodNeeds, evidence: tuple[str, ...]
) -> Cause | None:
    """Return why the cluster can never take the job as it is now; None if it could."""
    selector = needs.pod.get("nodeSelector") or {}
    with_device = [node for node in nodes if not needs.npus or capacity_of(node).get(needs.resource)]
    if needs.npus and not with_device:
        text = f"no node of the cluster has {needs.resource}{_similar(nodes)}"
        step = "ask the administrator whether the device plugin runs, or choose another --hardware"
        return Cause("resource-missing", text, evidence, (step, "kubectl describe nodes"))
    if not matching(with_device, needs.pod):
        labels = ", ".join(f"{key}={value}" for key, value in selector.items())
        device = f"with {needs.resource} " if needs.npus else ""
        text = f"no node {device}has the labels that the job selects ({labels}){_values(with_device, selector)}"
        show = f"kubectl get nodes -L {','.join(selector)}"
        return Cause("node-selector", text, evidence, ("change --node-selector or --hardware", show))
    large = [node for node in suitable if not shortages(needs.of_pod(), capacity_of(node))]
    if not large:
        return _too_small(suitable, needs, evidence)
    alone = not shares_nodes(needs.pod)
    if sum(1 if alone else pods_in(capacity_of(node), needs) for node in large) < needs.count:
        nodes_text = "1 node is" if len(large) == 1 else f"{len(large)} nodes are"
        names = listed([node["metadata"]["name"] for node in large])
        wanted = f"{needs.count} pods with {needs_text(needs)} each"
        text = f"the job needs room for {wanted} at the same time, and only {nodes_text} large enough: {names}"
        return Cause("gang-too-large", text, evidence, (f"ask for --nodes {len(large)} or fewer",))
    return None


def _too_small(nodes: Sequence[Json], needs: PodNeeds, evidence: tuple[str, ...]) -> Cause:
    wanted, capacities = needs.of_pod(), [capacity_of(node) for node in nodes]
    most = {name: max(capacity.get(name, _NOTHING) for capacity in capacities) for name in wanted}
    short = [name for name, amount in wanted.items() if amount > most[name]] or list(wanted)
    name = needs.resource if needs.resource in short else short[0]
    total, limit = sum((capacity.get(name, _NOTHING) for capacity in capacities), _NOTHING), amount_text(most[name])
    text = f"no node is large enough: a pod asks for {amount_text(wanted[name])} {name}, and no node has more than "
    text += limit
    if total >= wanted[name]:
        text += f"; the nodes have {amount_text(total)} in all, but a pod cannot use two nodes"
    device = name == needs.resource
    step = f"ask for --npus {limit} or fewer, on more --nodes" if device else f"ask for at most {limit} {name}"
    return Cause("node-too-small", text, evidence, (step,))


def _node_uses(nodes: Sequence[Json], objects: JobObjects, needs: PodNeeds) -> Iterator[NodeUse]:
    placed: dict[str, list[Json]] = {}
    for pod in filter(uses_node, (*(objects.others or ()), *objects.pods)):
        placed.setdefault(pod["spec"]["nodeName"], []).append(pod)
    own = {pod["spec"].get("nodeName") for pod in objects.pods if uses_node(pod)}
    wanted = needs.of_pod()
    names = sorted(wanted, key=lambda name: name != needs.resource)
    for node in nodes:
        name, status = node["metadata"]["name"], node.get("status") or {}
        totals = {**amounts(status.get("capacity")), **amounts(status.get("allocatable"))}
        holders: dict[str, dict[str, Decimal]] = {resource: {} for resource in names}
        for pod in placed.get(name, ()):
            for resource, amount in pod_amounts(pod["spec"]).items():
                if amount and resource in holders:
                    of_owner = holders[resource]
                    of_owner[owner_of(pod)] = of_owner.get(owner_of(pod), _NOTHING) + amount
        free = {resource: totals.get(resource, _NOTHING) - sum(holders[resource].values()) for resource in names}
        scarce = next((resource for resource in names if wanted[resource] > free[resource]), names[0] if names else "")
        alone = not shares_nodes(needs.pod)
        fits = 0 if alone and name in own else min(pods_in(free, needs), 1 if alone else needs.count)
        left, total = max(free.get(scarce, _NOTHING), _NOTHING), totals.get(scarce, _NOTHING)
        yield NodeUse(name, scarce, left, total, holders.get(scarce, {}), fits)


def _in_use(
    objects: JobObjects, needs: PodNeeds, uses: Sequence[NodeUse], large: int, evidence: tuple[str, ...]
) -> Cause:
    """Return which jobs hold what the job waits for, and until when."""
    resource = next((use.resource for use in uses if not use.fits), uses[0].resource)
    mine = [use for use in uses if use.resource == resource]
    wanted, most = needs.of_pod().get(resource, _NOTHING), max(use.free for use in mine)
    free, total = sum((use.free for use in mine), _NOTHING), sum((use.total for use in mine), _NOTHING)
    of_total = f"{amount_text(free)} of {amount_text(total)} {resource}"
    if needs.count > 1:
        begin = (
            f"the job needs room for {needs.count} pods with {amount_text(wanted)} {resource} at the same time, and "
        )
        begin += f"{sum(use.fits for use in uses)} fit on {large} nodes now"
    elif free >= wanted:
        begin = f"{of_total} are free, but no node has {amount_text(wanted)} together"
    elif free:
        begin = f"only {of_total} are free, and a pod asks for {amount_text(wanted)}"
    else:
        begin = f"all {amount_text(total)} {resource} that the job could have are in use"
    owners = _ranked_holders(mine)
    names = [f"{owner} uses {amount_text(amount)}{_until(objects, owner)}" for owner, amount in owners]
    who = listed(names) if names else "you have no right to see by which jobs"
    lines = tuple(f"node {use.node}: {amount_text(use.free)} of {amount_text(use.total)} free" for use in mine)
    device = "/" in resource
    fewer = f", or ask for --npus {amount_text(most)}" if device and most else ""
    jobs = [owner.removeprefix("job ") for owner, _ in owners if owner.startswith("job ")]
    steps = (f"wait until they end{fewer}", *(f"{PROGRAM} status {job}" for job in jobs[:1]))
    rule = "devices-in-use" if device else "resources-in-use"
    return Cause(rule, f"{begin}: {who}", (*evidence, *lines[:_SHOWN]), steps)


def _ranked_holders(uses: Sequence[NodeUse]) -> list[tuple[str, Decimal]]:
    holders: dict[str, Decimal] = {}
    for use in uses:
        for owner, amount in use.holders.items():
            holders[owner] = holders.get(owner, _NOTHING) + amount
    return sorted(holders.items(), key=lambda item: (-item[1], item[0]))


def _until(objects: JobObjects, owner: str) -> str:
    end = objects.until.get(owner)
    return "" if end is None else f" until about {clock_time(end)}"


def _from_schedulers_words(objects: JobObjects, evidence: tuple[str, ...]) -> Iterator[Cause]:
    message = next(filter(None, map(unplaced_message, objects.unplaced)), "")
    for pattern, rule, step in _SCHEDULERS_WORDS:
        if re.search(pattern, message):
            yield Cause(rule, " ".join(message.split()), evidence, (step,))


def _scheduler_evidence(objects: JobObjects) -> tuple[str, ...]:
    """Return the scheduler's words about the pods without a node, the same words once."""
    names: dict[str, list[str]] = {}
    for pod in objects.unplaced:
        if message := " ".join(unplaced_message(pod).split()):
            names.setdefault(message, []).append(pod["metadata"]["name"])
    return tuple(f"scheduler, of {listed(pods, 2)}: {message}" for message, pods in names.items())


def _similar(nodes: Sequence[Json]) -> str:
    """Return which devices the nodes have in place of the missing one."""
    found = {name for node in nodes for name, amount in capacity_of(node).items() if "/" in name and amount}
    return f"; they have {listed(sorted(found))}" if found else ""


def _values(nodes: Sequence[Json], selector: Mapping[str, str]) -> str:
    """Return which values the nodes have for the labels that no node has as the job selects them."""
    texts = []
    for key, value in selector.items():
        values = {str((node["metadata"].get("labels") or {}).get(key, "")) for node in nodes} - {""}
        if value not in values:
            known = f"{key} is {listed(sorted(values), _SHOWN)}" if values else f"no such node has the label {key}"
            texts.append(known)
    return f": {'; '.join(texts)}" if texts else ""
