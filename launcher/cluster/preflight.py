"""Whether a cluster has what a job's pods need: claims that are bound and can be shared, nodes with so many NPUs. Pure.

Objects as the API server gives them go in, findings come out. What is only on its way is no fault: a claim that waits
for its first pod, or a kind of node that an autoscaler adds when it is asked for.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]

_ANY = frozenset({"ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"})
ALONE = {"data_claim": _ANY, "output_claim": _ANY - {"ReadOnlyMany"}}
SHARED = {"data_claim": frozenset({"ReadWriteMany", "ReadOnlyMany"}), "output_claim": frozenset({"ReadWriteMany"})}
"""The access modes of which a claim needs one, for pods on one node and on several."""
_CONSUMER = "volume.kubernetes.io/selected-node"
_WAITS_FOR_A_POD = frozenset({"WaitForFirstConsumer", "WaitForPodScheduled"})


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        state: `later` is what may still come, as a node does that an autoscaler adds when it is asked for.
        text: one line; of a fault, what is wrong, where, and the next step.
    """

    about: str
    state: Literal["ok", "missing", "later", "unknown"]
    text: str


def is_pending(claim: Json) -> bool:
    """Whether its events say more than it does."""
    return bool((claim.get("status") or {}).get("phase", "Pending") == "Pending")


def judge_claim(
    use: str, name: str, claim: Json | None, events: Sequence[Json], *, namespace: str, nodes: int
) -> Finding:
    """Whether pods on so many nodes can use a claim.

    Args:
        use: the setting that names it: `data_claim`, `output_claim`.
        claim: None if there is none.
        events: of a claim that is not bound, oldest first.
    """
    about, flag = f"claim {name}", f"--{use.replace('_', '-')} {name}"
    if claim is None:
        made = "`helm install pnas charts/pnas` or k8s/manifests/claims.yaml makes one"
        return Finding(about, "missing", f"{flag}: there is no such claim in namespace {namespace}; {made}")
    if fault := _fault(claim, events):
        return Finding(about, "missing", f"{flag}: {fault}; see `kubectl describe pvc {name} --namespace {namespace}`")
    status = claim.get("status") or {}
    modes = status.get("accessModes") or claim["spec"].get("accessModes", [])
    wanted = (SHARED if nodes > 1 else ALONE)[use]
    if not wanted & set(modes):
        needs = f"has {', '.join(modes)} alone, and needs {' or '.join(sorted(wanted))}"
        why = f"as the pods of --nodes {nodes} share it" if nodes > 1 else "as runs write there"
        return Finding(about, "missing", f"{flag}: the claim {needs}, {why}; choose another claim")
    return Finding(about, "ok", f"{status.get('phase', 'Pending')}, {', '.join(modes)}")


def _fault(claim: Json, events: Sequence[Json]) -> str:
    """What keeps pods from it, or nothing."""
    if "deletionTimestamp" in claim["metadata"]:
        return "it is being deleted"
    if not is_pending(claim):
        phase = claim["status"]["phase"]
        return "" if phase == "Bound" else f"it is {phase}"
    said = events[-1] if events else {}
    if said.get("reason") in _WAITS_FOR_A_POD or _CONSUMER in (claim["metadata"].get("annotations") or {}):
        return ""
    why = " ".join(str(said.get("message", "")).split())
    return "it is not bound" + (f" ({why})" if why else " yet")


def judge_nodes(nodes: Sequence[Json], resource: str, npus: int, labels: Sequence[str]) -> Finding:
    """Whether one of the nodes has so many NPUs. Those that are taken or ill now count: they come back.

    Args:
        nodes: those that have the `labels`, which are KEY=VALUE.
    """
    counts = [int((node.get("status") or {}).get("capacity", {}).get(resource, 0)) for node in nodes]
    most, none_has = max(counts, default=0), f"no node{' with ' + ', '.join(labels) if labels else ''} has"
    if most == 0:
        return Finding("NPUs", "later", f"{none_has} {resource} now; a job waits until one comes")
    if most < npus:
        advice = f"ask for {most} or fewer, on more --nodes"
        return Finding("NPUs", "missing", f"--npus {npus}: {none_has} more than {most} {resource}; {advice}")
    fitting = sum(count >= npus for count in counts)
    return Finding("NPUs", "ok", f"{npus} {resource} or more on {fitting} of {len(nodes)} nodes")
