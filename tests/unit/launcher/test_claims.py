"""Preflight checks of claims, from objects as the API server returns them."""

from typing import Any

import pytest

from launcher.cluster.claims import check_claim


def claim(phase: str = "Bound", *modes: str, **metadata: Any) -> dict[str, Any]:
    status = {"phase": phase, **({"accessModes": list(modes)} if phase == "Bound" else {})}
    return {"metadata": {"name": "c", **metadata}, "spec": {"accessModes": list(modes)}, "status": status}


def event(reason: str, message: str = "said so") -> dict[str, Any]:
    return {"reason": reason, "message": message}


@pytest.mark.parametrize(
    ("claim_object", "events", "message"),
    [
        (None, [], "--output-claim c: there is no such claim in namespace n; `helm install pnas charts/pnas` or"),
        (claim("Pending", "ReadWriteMany"), [], "--output-claim c: it is not bound yet; see `kubectl describe pvc c"),
        (claim("Pending", "ReadWriteMany"), [event("FailedBinding", "no  volume")], "it is not bound (no volume); see"),
        (claim("Lost", "ReadWriteMany"), [], "it is Lost; see"),
        (claim("Bound", "ReadWriteMany", deletionTimestamp="now"), [], "it is being deleted"),
    ],
)
def test_a_claim_that_keeps_pods_waiting_is_named_with_the_next_step(
    claim_object: Any, events: Any, message: str
) -> None:
    finding = check_claim("output_claim", "c", claim_object, events, namespace="n", nodes=1)
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
    assert check_claim("output_claim", "c", claim_object, events, namespace="n", nodes=1).state == "ok"


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
    finding = check_claim(use, "c", claim("Bound", *modes), [], namespace="n", nodes=nodes)
    assert finding.state == state, finding.text
    assert state == "ok" or f"--{use.replace('_', '-')} c: the claim has only {', '.join(modes)}" in finding.text
