"""Preflight checks of claims, from objects as the API server returns them."""

from typing import Any

import pytest

from launcher.cluster.claims import check_claim

NOW = 1_000_000.0
OLD, NEW = "1970-01-01T00:00:00Z", "1970-01-12T13:46:38Z"
PROVISIONED = {"volume.kubernetes.io/storage-provisioner": "csi.example"}


def claim(phase: str = "Bound", *modes: str, storage_class: str | None = None, **metadata: Any) -> dict[str, Any]:
    status = {"phase": phase, **({"accessModes": list(modes)} if phase == "Bound" else {})}
    spec = {"accessModes": list(modes), "storageClassName": storage_class}
    return {"metadata": {"name": "c", "creationTimestamp": OLD, **metadata}, "spec": spec, "status": status}


def check(claim_object: Any, events: Any = (), *, use: str = "output_claim", nodes: int = 1, hidden: str = "") -> Any:
    return check_claim(use, "c", claim_object, (list(events), hidden), namespace="n", nodes=nodes, now=NOW)


def event(reason: str, message: str = "said so") -> dict[str, Any]:
    return {"reason": reason, "message": message}


@pytest.mark.parametrize(
    ("claim_object", "events", "message"),
    [
        (None, [], "--output-claim c: there is no such claim in namespace n; `helm install pnas charts/pnas` or"),
        (claim("Pending", "ReadWriteMany"), [], "--output-claim c: it is not bound yet; see `kubectl describe pvc c"),
        (claim("Pending", "ReadWriteMany"), [event("FailedBinding", "no  volume")], "it is not bound (no volume); see"),
        (
            claim("Pending", "ReadWriteMany", storage_class="gone"),
            [event("ProvisioningFailed", 'storageclass.storage.k8s.io "gone" not found')],
            'it is not bound (storageclass.storage.k8s.io "gone" not found); see',
        ),
        (claim("Pending", "ReadWriteMany", storage_class="slow"), [], "it is not bound yet; see"),
        (claim("Pending", "ReadWriteMany", storage_class="", creationTimestamp=NEW), [], "it is not bound yet; see"),
        (claim("Pending", "ReadWriteMany", creationTimestamp=NEW), [], "it is not bound yet; see"),
        (claim("Lost", "ReadWriteMany"), [], "it is Lost; see"),
        (claim("Bound", "ReadWriteMany", deletionTimestamp="now"), [], "it is being deleted"),
    ],
)
def test_a_claim_that_keeps_pods_waiting_is_named_with_the_next_step(
    claim_object: Any, events: Any, message: str
) -> None:
    finding = check(claim_object, events)
    assert finding.state == "missing"
    assert message in finding.text


@pytest.mark.parametrize(
    ("claim_object", "events"),
    [
        (claim("Pending", "ReadWriteOnce"), [event("FailedBinding"), event("WaitForFirstConsumer")]),
        (claim("Pending", "ReadWriteOnce", annotations={"volume.kubernetes.io/selected-node": "a"}), []),
    ],
)
def test_a_claim_that_waits_for_its_first_pod_is_ready(claim_object: Any, events: Any) -> None:
    assert check(claim_object, events).state == "ok"


@pytest.mark.parametrize(
    ("claim_object", "events", "message"),
    [
        (
            claim("Pending", "ReadWriteMany", storage_class="fast", creationTimestamp=NEW),
            [],
            "it is new and has no vol",
        ),
        (claim("Pending", "ReadWriteMany", annotations=PROVISIONED), [], "its volume is being made; a job waits"),
        (claim("Pending", "ReadWriteMany"), [event("ExternalProvisioning")], "its volume is being made (said so);"),
        (
            claim("Pending", "ReadWriteMany", annotations=PROVISIONED),
            [event("ProvisioningFailed", "no space"), event("ExternalProvisioning")],
            "its volume is being made (no space); a job waits until it is bound: see `kubectl describe pvc c",
        ),
    ],
)
def test_a_job_can_wait_for_a_claim_whose_volume_is_being_made(claim_object: Any, events: Any, message: str) -> None:
    finding = check(claim_object, events)
    assert finding.state == "later"
    assert finding.text.startswith(f"--output-claim c: {message}")
    once = {**claim_object, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}}
    assert check(once, events, nodes=2).state == "missing", "several nodes can never share it"


def test_without_the_right_to_see_events_a_claim_that_may_wait_for_a_pod_is_not_refused() -> None:
    finding = check(claim("Pending", "ReadWriteMany", storage_class="slow"), hidden="no right to list events")
    assert finding.state == "unknown"
    assert finding.text == "not checked: whether it gets a volume: no right to list events"


@pytest.mark.parametrize(
    ("use", "modes", "nodes", "state"),
    [
        ("output_claim", ["ReadWriteOnce"], 1, "ok"),
        ("output_claim", ["ReadWriteOnce"], 2, "missing"),
        ("output_claim", ["ReadWriteOncePod"], 2, "missing"),
        ("output_claim", ["ReadOnlyMany"], 1, "missing"),
        ("output_claim", ["ReadOnlyMany", "ReadWriteMany"], 2, "ok"),
        ("data_claim", ["ReadOnlyMany"], 2, "ok"),
        ("data_claim", ["ReadWriteOnce"], 2, "missing"),
        ("data_claim", ["ReadWriteOnce"], 1, "ok"),
    ],
)
def test_pods_of_several_nodes_need_a_claim_that_they_can_share(
    use: str, modes: list[str], nodes: int, state: str
) -> None:
    finding = check(claim("Bound", *modes), use=use, nodes=nodes)
    assert finding.state == state, finding.text
    assert state == "ok" or f"--{use.replace('_', '-')} c: the claim has only {', '.join(modes)}" in finding.text
