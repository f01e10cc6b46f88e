"""Whether the pods of a job can use a claim. A claim that waits for its first pod is no fault.

Nor is a claim whose volume is being made, which Kubernetes marks with the name of the provisioner. The storage
class itself is outside the namespace, and few users can read it. Only `find_claim` asks the server.
"""

import time
from collections.abc import Sequence

from launcher.cluster.events import Events, events_about
from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.kinds.objects import annotations, is_young
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import CLAIMS

_ANY_MODE = frozenset({"ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"})
# The access modes of which a claim needs one, for pods on one node and on several.
ONE_NODE = {"data_claim": _ANY_MODE, "output_claim": _ANY_MODE - {"ReadOnlyMany"}}
SEVERAL_NODES = {
    "data_claim": frozenset({"ReadWriteMany", "ReadOnlyMany"}),
    "output_claim": frozenset({"ReadWriteMany"}),
}
_CONSUMER = "volume.kubernetes.io/selected-node"
_PROVISIONERS = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
_WAITS_FOR_A_POD = frozenset({"WaitForFirstConsumer", "WaitForPodScheduled"})
_IS_BEING_MADE = frozenset({"ExternalProvisioning", "Provisioning", "ProvisioningSucceeded"})


def find_claim(api: Api, setting: str, name: str, nodes: int) -> PreflightFinding:
    """Read a claim and check it; see `check_claim`."""
    claim, hidden = if_allowed(lambda: api.find(CLAIMS, name))
    if hidden:
        return PreflightFinding(f"claim {name}", "unknown", f"{NOT_CHECKED}{hidden}")
    events = events_about(api, claim) if claim is not None and is_unbound(claim) else ([], "")
    return check_claim(setting, name, claim, events, namespace=api.namespace, nodes=nodes, now=time.time())


def check_claim(
    setting: str, name: str, claim: Json | None, events: Events, *, namespace: str, nodes: int, now: float
) -> PreflightFinding:
    """Check whether the pods of a job can use a claim.

    Args:
        setting: the setting that names it: `data_claim`, `output_claim`.
        claim: None if there is no such claim.
        events: of a claim that is not bound.
        nodes: how many nodes the job has.
        now: in seconds since 1970.
    """
    about, flag = f"claim {name}", f"--{setting.replace('_', '-')} {name}"
    if claim is None:
        remedy = "`helm install pnas charts/pnas` or k8s/manifests/claims.yaml makes one"
        return PreflightFinding(about, "missing", f"{flag}: there is no such claim in namespace {namespace}; {remedy}")
    remedy = f"see `kubectl describe pvc {name} --namespace {namespace}`"
    fault = _claim_fault(claim)
    waits, refused = _binding(claim, *events, now) if not fault and is_unbound(claim) else ("", "")
    if fault or refused:
        return PreflightFinding(about, "missing", f"{flag}: {fault or refused}; {remedy}")
    status = claim.get("status") or {}
    modes = status.get("accessModes") or claim["spec"].get("accessModes", [])
    suitable = (SEVERAL_NODES if nodes > 1 else ONE_NODE)[setting]
    if not suitable & set(modes):
        needs = f"has only {', '.join(modes)}, and needs {' or '.join(sorted(suitable))}"
        why = f"as the pods of --nodes {nodes} share it" if nodes > 1 else "as runs write there"
        return PreflightFinding(about, "missing", f"{flag}: the claim {needs}, {why}; choose another claim")
    if waits.startswith(NOT_CHECKED):
        return PreflightFinding(about, "unknown", waits)
    if waits:
        return PreflightFinding(about, "later", f"{flag}: {waits}; a job waits until it is bound: {remedy}")
    return PreflightFinding(about, "ok", f"{status.get('phase', 'Pending')}, {', '.join(modes)}")


def is_unbound(claim: Json) -> bool:
    """Return whether the claim has no volume yet."""
    return bool((claim.get("status") or {}).get("phase", "Pending") == "Pending")


def _claim_fault(claim: Json) -> str:
    """Return why pods can never use the claim; empty if they can."""
    if "deletionTimestamp" in claim["metadata"]:
        return "it is being deleted"
    phase = (claim.get("status") or {}).get("phase", "Pending")
    return "" if phase in ("Bound", "Pending") else f"it is {phase}"


def _binding(claim: Json, events: Sequence[Json], hidden: str, now: float) -> tuple[str, str]:
    """Return why a claim without a volume gets one only later, and why it gets none; empty if a pod makes it bound.

    Args:
        hidden: why the user cannot see the events.
    """
    event = events[-1] if events else {}
    reason = event.get("reason")
    if reason in _WAITS_FOR_A_POD or _CONSUMER in annotations(claim):
        return "", ""
    failure = next((item for item in reversed(events) if item.get("reason") == "ProvisioningFailed"), event)
    message = " ".join(str(failure.get("message", "")).split())
    said = f" ({message})" if message else ""
    if reason in _IS_BEING_MADE or any(name in annotations(claim) for name in _PROVISIONERS):
        return f"its volume is being made{said}", ""
    if not event and claim["spec"].get("storageClassName"):
        # Its storage class may have a provisioner, which has perhaps not seen it.
        if is_young(claim, now):
            return "it is new and has no volume yet", ""
        if hidden:
            return f"{NOT_CHECKED}whether it gets a volume: {hidden}", ""
    return "", f"it is not bound{said or ' yet'}"
