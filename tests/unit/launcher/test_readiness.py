"""Preflight checks of claims and nodes, from objects as the API server returns them."""

from typing import Any

import pytest

from launcher.cluster.preflight import check_claim, check_nodes

RESOURCE = "huawei.com/Ascend910"


def claim(phase: str = "Bound", *modes: str, **metadata: Any) -> dict[str, Any]:
    status = {"phase": phase, **({"accessModes": list(modes)} if phase == "Bound" else {})}
    return {"metadata": {"name": "c", **metadata}, "spec": {"accessModes": list(modes)}, "status": status}


def event(reason: str, message: str = "said so") -> dict[str, Any]:
    return {"reason": reason, "message": message}


def node(npus: int | None, **status: Any) -> dict[str, Any]:
    capacity = {} if npus is None else {RESOURCE: str(npus)}
    return {"metadata": {"name": "n"}, "status": {"capacity": capacity, **status}}


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


def test_more_npus_than_any_node_has_are_refused_even_if_npus_are_in_use_now() -> None:
    finding = check_nodes([node(4), node(None)], RESOURCE, 8, ["a=b"])
    assert finding.state == "missing"
    assert finding.text.startswith(f"--npus 8: no node with a=b has more than 4 {RESOURCE}; ask for 4 or fewer")
    taken = node(8, allocatable={RESOURCE: "0"})
    assert check_nodes([taken, node(4)], RESOURCE, 8, []).text == f"8 {RESOURCE} or more on 1 of 2 nodes"


@pytest.mark.parametrize("nodes", [[], [node(None)]])
def test_nodes_that_an_autoscaler_can_still_add_are_not_missing(nodes: list[Any]) -> None:
    assert check_nodes(nodes, RESOURCE, 8, []).state == "later"
