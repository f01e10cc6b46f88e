"""The stand-in's scheduler places the pods of a group, says why it cannot, and sets the group's phase."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.scheduler import placement, pod_group_status
from tests.unit.volcano.objects import Json, make_pod


@given(st.integers(0, 10**9), st.sampled_from(["cpu", "memory", "huawei.com/Ascend910"]))
def test_an_amount_is_the_same_after_writing_and_parsing(thousandths: int, resource: str) -> None:
    amount = quantities.parse(f"{thousandths}m")
    assert quantities.parse(quantities.to_text(amount, resource=resource)) == amount


@pytest.mark.parametrize(
    ("resource", "parts", "total"),
    [
        ("cpu", ["10m", "10m"], "20m"),
        ("cpu", ["500m", "1.5"], "2"),
        ("memory", ["512Mi", "1.5Gi"], "2Gi"),
        ("memory", ["1G"], "1000000000"),
        ("huawei.com/Ascend910", ["8", "8"], "16"),
    ],
)
def test_sums_are_written_as_kubernetes_writes_them(resource: str, parts: list[str], total: str) -> None:
    amounts = quantities.add(*({resource: quantities.parse(part)} for part in parts))
    assert quantities.to_text(amounts[resource], resource=resource) == total


def _node(name: str = "n1", *, npus: int = 8, labels: Json | None = None, **spec: Any) -> Json:
    metadata = {"name": name, "labels": labels or {}}
    return {"metadata": metadata, "spec": spec, "status": {"allocatable": {"npu.com/n": str(npus), "pods": "110"}}}


def _waiting(index: int, npus: int = 8, **spec: Any) -> Json:
    pod = make_pod(index, "Pending")
    containers = [{"resources": {"requests": {"npu.com/n": str(npus)}}}]
    pod["spec"] = {"schedulerName": "volcano", "containers": containers, **spec}
    return pod


def _group(least: int, **tasks: int) -> Json:
    return {"spec": {"minMember": least, "minTaskMember": tasks}, "status": {"phase": "Inqueue"}}


def _fit(group: Json, pods: list[Json], *nodes: Json) -> placement.Placement:
    return placement.place(group, pods, placement.node_capacities(nodes, pods))


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    pods = [_waiting(0), _waiting(1)]
    whole = _fit(_group(2), pods, _node("n1"), _node("n2"))
    assert whole.ready
    assert [node for _pod, node in whole.places] == ["n1", "n2"]
    half = _fit(_group(2), pods, _node("n1"))
    assert not half.ready
    message = "pod group is not ready, 2 Pending, 2 minAvailable; Pending: 1 Schedulable, 1 Unschedulable"
    assert placement.describe(_group(2), pods, half) == message


def test_pods_beyond_the_least_number_start_if_they_fit() -> None:
    pods = [_waiting(0, 4), _waiting(1, 4), _waiting(2, 4)]
    fit = _fit(_group(1), pods, _node())
    assert fit.ready
    message = "pod group is ready, 1 Pending, 1 minAvailable, 2 Binding; Pending: 1 Unschedulable"
    assert placement.describe(_group(1), pods, fit) == message


def test_each_task_needs_its_own_least_number() -> None:
    pods = [_waiting(0, 4), _waiting(1, 4)]
    assert not _fit(_group(2, w=1, m=1), pods, _node()).ready
    assert _fit(_group(2, w=2), pods, _node()).ready
    # The scheduler ignores the tasks' numbers if their sum exceeds the group's.
    assert _fit(_group(2, w=2, m=1), pods, _node()).ready


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_an_ended_pod_holds_no_resources(phase: str) -> None:
    ended = _waiting(0, nodeName="n1")
    ended["status"]["phase"] = phase
    assert _fit(_group(1), [ended, _waiting(1)], _node()).places
    assert not _fit(_group(1), [_waiting(0, nodeName="n1"), _waiting(1)], _node()).places


@pytest.mark.parametrize(
    ("pod", "node", "reason"),
    [
        ({"nodeSelector": {"x": "y"}}, _node(), "didn't match Pod's node affinity/selector"),
        ({"nodeSelector": {"x": "y"}}, _node(labels={"x": "y"}), ""),
        ({}, _node(unschedulable=True), "were unschedulable"),
        ({}, _node(taints=[{"key": "k", "effect": "NoSchedule"}]), "had untolerated taint {k: }"),
        ({}, _node(taints=[{"key": "k", "effect": "PreferNoSchedule"}]), ""),
        (
            {"tolerations": [{"key": "k", "operator": "Exists"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "",
        ),
        (
            {"tolerations": [{"key": "k", "value": "v", "effect": "NoExecute"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "had untolerated taint {k: v}",
        ),
        (
            {"tolerations": [{"key": "k", "value": "other"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "had untolerated taint {k: v}",
        ),
        ({"tolerations": [{"operator": "Exists"}]}, _node(taints=[{"key": "k", "effect": "NoExecute"}]), ""),
    ],
)
def test_a_node_is_refused_in_kubernetes_own_words(pod: Json, node: Json, reason: str) -> None:
    assert placement.node_refusal(_waiting(0, **pod), node) == reason


@pytest.mark.parametrize(
    ("operator", "values", "labels", "fits"),
    [
        ("In", ["a", "b"], {"k": "b"}, True),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {"k": "a"}, False),
        ("NotIn", ["a"], {}, True),
        ("Exists", [], {"k": ""}, True),
        ("Exists", [], {}, False),
        ("DoesNotExist", [], {"k": ""}, False),
        ("DoesNotExist", [], {}, True),
    ],
)
def test_node_affinity_is_respected(operator: str, values: list[str], labels: Json, fits: bool) -> None:
    terms = [{"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    assert bool(placement.node_refusal(_waiting(0, affinity=affinity), _node(labels=labels))) is not fits


def test_the_reason_is_given_only_if_no_node_accepts_the_pod() -> None:
    pods = [_waiting(0, nodeSelector={"x": "y"})]
    fit = _fit(_group(1), pods, _node("n1"), _node("n2"))
    reason = "0/2 nodes are unavailable: 2 node(s) didn't match Pod's node affinity/selector."
    assert placement.describe(_group(1), pods, fit).endswith(f"1 Unschedulable. Origin reason is j-w-0: {reason}")
    refused_by_one = _fit(_group(1), pods, _node("n1"), _node("n2", npus=4, labels={"x": "y"}))
    assert placement.describe(_group(1), pods, refused_by_one).endswith("Pending: 1 Unschedulable")
    lacking = _fit(_group(1), [_waiting(0, 16)], _node("n1"))
    assert placement.describe(_group(1), [_waiting(0, 16)], lacking).endswith("Pending: 1 Unschedulable")


@pytest.mark.parametrize(
    ("before", "least", "pods", "short", "phase"),
    [
        ("Inqueue", 2, [], False, "Inqueue"),
        ("Pending", 2, [], False, "Pending"),
        ("Inqueue", 2, ["Pending", "Pending"], False, "Running"),
        ("Running", 2, ["Running"], True, "Unknown"),
        ("Unknown", 2, ["Running"], False, "Pending"),
        ("Inqueue", 2, ["Running"], False, "Inqueue"),
        ("Running", 2, ["Running", "Failed"], True, "Unknown"),
        ("Running", 2, ["Running", "Failed"], False, "Pending"),
        ("Inqueue", 2, ["Pending"], True, "Inqueue"),
        ("Running", 2, ["Succeeded", "Running"], False, "Running"),
        ("Running", 2, ["Succeeded", "Succeeded"], False, "Completed"),
        ("Inqueue", 0, [], False, "Completed"),
    ],
)
def test_a_group_s_phase_follows_from_its_pods(
    before: str, least: int, pods: list[str], short: bool, phase: str
) -> None:
    group: Json = {"spec": {"minMember": least}, "status": {"phase": before}}
    placed = [{**make_pod(index, pod_phase), "spec": {"nodeName": "n1"}} for index, pod_phase in enumerate(pods)]
    pod_group_status.update_status(group, placed, short=short)
    assert group["status"]["phase"] == phase
    assert group["status"].get("running", 0) == pods.count("Running")


def test_a_deleted_pod_holds_its_place_in_the_group_until_it_is_gone() -> None:
    deleted = {**make_pod(0, "Running"), "spec": {"nodeName": "n1"}}
    deleted["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    assert pod_group_status.placed_pods([deleted]) == [deleted]
    group: Json = {"spec": {"minMember": 1}, "status": {"phase": "Inqueue"}}
    pod_group_status.update_status(group, [deleted], short=False)
    assert group["status"]["phase"] == "Running"
