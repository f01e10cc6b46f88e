"""Whether the pods of a job can use a claim. Pure. A claim that waits for its first pod is no fault."""

from collections.abc import Sequence

from launcher.jobs import PreflightFinding
from launcher.kube.api import Json

_ANY_MODE = frozenset({"ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"})
# The access modes of which a claim needs one, for pods on one node and on several.
ONE_NODE = {"data_claim": _ANY_MODE, "output_claim": _ANY_MODE - {"ReadOnlyMany"}}
SEVERAL_NODES = {
    "data_claim": frozenset({"ReadWriteMany", "ReadOnlyMany"}),
    "output_claim": frozenset({"ReadWriteMany"}),
}
_CONSUMER = "volume.kubernetes.io/selected-node"
_WAITS_FOR_A_POD = frozenset({"WaitForFirstConsumer", "WaitForPodScheduled"})


def check_claim(
    setting: str, name: str, claim: Json | None, events: Sequence[Json], *, namespace: str, nodes: int
) -> PreflightFinding:
    """Check whether the pods of a job can use a claim.

    Args:
        setting: the setting that names it: `data_claim`, `output_claim`.
        claim: None if there is no such claim.
        events: of a claim that is not bound, oldest first.
        nodes: how many nodes the job has.
    """
    about, flag = f"claim {name}", f"--{setting.replace('_', '-')} {name}"
    if claim is None:
        remedy = "`helm install pnas charts/pnas` or k8s/manifests/claims.yaml makes one"
        return PreflightFinding(about, "missing", f"{flag}: there is no such claim in namespace {namespace}; {remedy}")
    if fault := _claim_fault(claim, events):
        remedy = f"see `kubectl describe pvc {name} --namespace {namespace}`"
        return PreflightFinding(about, "missing", f"{flag}: {fault}; {remedy}")
    status = claim.get("status") or {}
    modes = status.get("accessModes") or claim["spec"].get("accessModes", [])
    suitable = (SEVERAL_NODES if nodes > 1 else ONE_NODE)[setting]
    if not suitable & set(modes):
        needs = f"has only {', '.join(modes)}, and needs {' or '.join(sorted(suitable))}"
        why = f"as the pods of --nodes {nodes} share it" if nodes > 1 else "as runs write there"
        return PreflightFinding(about, "missing", f"{flag}: the claim {needs}, {why}; choose another claim")
    return PreflightFinding(about, "ok", f"{status.get('phase', 'Pending')}, {', '.join(modes)}")


def is_unbound(claim: Json) -> bool:
    """Return whether the claim has no volume yet."""
    return bool((claim.get("status") or {}).get("phase", "Pending") == "Pending")


def _claim_fault(claim: Json, events: Sequence[Json]) -> str:
    """Return what keeps pods from using the claim; empty if nothing does."""
    if "deletionTimestamp" in claim["metadata"]:
        return "it is being deleted"
    if not is_unbound(claim):
        phase = claim["status"]["phase"]
        return "" if phase == "Bound" else f"it is {phase}"
    event = events[-1] if events else {}
    if event.get("reason") in _WAITS_FOR_A_POD or _CONSUMER in (claim["metadata"].get("annotations") or {}):
        return ""
    message = " ".join(str(event.get("message", "")).split())
    return "it is not bound" + (f" ({message})" if message else " yet")
