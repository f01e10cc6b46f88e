"""Pods on nodes that do not answer: they are named within a minute, and deleted only after proof."""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import pytest

from launcher.cluster.lost_nodes import LEASE_NAMESPACE, LEASE_WATCH_S, delete_by_force, lost_pods, lost_reason
from launcher.errors import ApiError, ConflictError
from launcher.kube.api import STRATEGIC_PATCH, Json
from launcher.kube.resources import LEASES, NODES, PODS, Resource

NOON = datetime(2026, 11, 24, 12, tzinfo=timezone.utc).timestamp()


def _pod(
    name: str = "a-x",
    *,
    ready: str = "True",
    containers: str = "True",
    deleted: str | None = None,
    phase: str = "Running",
    reason: str = "",
) -> Json:
    conditions = [
        {"type": "Ready", "status": ready, "reason": reason, "lastTransitionTime": "2026-11-24T11:59:00Z"},
        {"type": "ContainersReady", "status": containers, "lastTransitionTime": "2026-11-24T11:00:00Z"},
    ]
    meta = {"name": name, "uid": f"uid-{name}", **({} if deleted is None else {"deletionTimestamp": deleted})}
    return {"metadata": meta, "spec": {"nodeName": "node2"}, "status": {"phase": phase, "conditions": conditions}}


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (_pod(), ""),
        (_pod(ready="False", containers="False"), ""),  # its kubelet ends it
        (_pod(deleted="2026-11-24T12:00:30Z"), ""),  # it has its grace period
        (_pod(ready="False", phase="Failed"), ""),
        (_pod(ready="False", reason="ReadinessGatesNotReady"), ""),
        (_pod(ready="False"), "node node2 has not answered since 11:59:00, and pod a-x is on it: the cluster gives"),
        (
            _pod(ready="False", deleted="2026-11-24T12:00:30Z"),
            "pod a-x cannot end, because its node node2 has not answered since 11:59:00; `python -m launcher recover",
        ),
        (
            _pod(deleted="2026-11-24T11:59:20Z"),
            "pod a-x should have ended at 11:59:20, and node node2 does not say so; `python -m launcher recover a`",
        ),
    ],
)
def test_a_pod_on_a_silent_node_is_named_with_node_and_time(
    pod: Json, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    reason = lost_reason("a", [_pod("other"), pod], NOON)
    assert reason.startswith(words) if words else reason == ""


def test_a_pod_that_cannot_end_comes_first() -> None:
    pods = [_pod("first", ready="False"), _pod("second", ready="False", deleted="2026-11-24T12:00:30Z")]
    assert lost_reason("a", pods, NOON).startswith("pod second cannot end")
    assert [pod.name for pod in lost_pods(pods, NOON)] == ["first", "second"]


class _Cluster:
    """An API server with one node, whose lease may be renewed between two questions."""

    def __init__(self, ready: str | None = "Unknown", leases: Sequence[str] = ("t1", "t1")) -> None:
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-24T11:59:00Z"}
        self._node = None if ready is None else {"status": {"conditions": [condition]}}
        self._leases = list(leases)
        self.deleted: list[tuple[str, str | None, bool]] = []
        self.failed = 0

    def find(self, resource: Resource, name: str) -> Json | None:
        assert (resource, name) == (NODES, "node2")
        return self._node

    namespace = "training"

    def request(self, method: str, path: str, *, action: str, body: Json | None = None, content_type: str = "") -> Json:
        if body is not None:
            assert (method, path) == ("PATCH", "/api/v1/namespaces/training/pods/a-x/status")
            assert (body["metadata"]["uid"], body["status"]["phase"]) == ("uid-a-x", "Failed")
            assert content_type == STRATEGIC_PATCH
            self.failed += 1
            return {}
        assert (method, path) == ("GET", LEASES.path(LEASE_NAMESPACE, "node2")), action
        if not self._leases:
            raise ApiError("not found", status=404)
        return {"spec": {"renewTime": self._leases.pop(0)}}

    def delete(self, resource: Resource, name: str, *, uid: str | None = None, force: bool = False) -> None:
        assert (resource, self.failed) == (PODS, 1), "a Kubernetes Job replaces only failed pods"
        self.deleted.append((name, uid, force))


def _recover(cluster: Any, *pods: Json) -> tuple[list[str], list[float]]:
    notes: list[str] = []
    sleeps: list[float] = []
    delete_by_force(cluster, "a", pods, on_note=notes.append, sleep=sleeps.append)
    return notes, sleeps


GIVEN_UP = _pod(ready="False", deleted="2026-11-24T12:00:30Z")


def test_a_pod_is_deleted_by_force_after_its_nodes_lease_was_watched() -> None:
    cluster = _Cluster()
    notes, sleeps = _recover(cluster, _pod("other"), GIVEN_UP)
    assert cluster.deleted == [("a-x", "uid-a-x", True)]
    assert sleeps == [LEASE_WATCH_S]
    assert notes[-1].startswith("pod a-x deleted by force: node node2 has been silent for ")
    notes, _ = _recover(_Cluster(leases=()), GIVEN_UP)
    assert notes[-1].endswith("and has not renewed its lease since it was removed")
    gone = _Cluster(ready=None)
    notes, sleeps = _recover(gone, GIVEN_UP)
    assert (len(gone.deleted), sleeps) == (1, [])
    assert "node node2 is not in the cluster any more" in notes[-1]


@pytest.mark.parametrize(
    ("cluster", "pod", "words"),
    [
        (
            _Cluster(ready="True"),
            GIVEN_UP,
            r"node node2 answers \(its condition Ready is True\): pod a-x ends by itself",
        ),
        (_Cluster(ready="False"), GIVEN_UP, r"answers \(its condition Ready is False\)"),
        (_Cluster(leases=("t1", "t2")), GIVEN_UP, "node node2 answers again"),
        (_Cluster(), _pod(), "the cluster has given no pod up: its nodes answer; nothing deleted"),
        (_Cluster(), _pod(ready="False"), "given no pod up: node node2 has not answered since"),
    ],
)
def test_a_pod_whose_node_answers_is_not_deleted(cluster: _Cluster, pod: Json, words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        _recover(cluster, pod)
    assert cluster.deleted == []


def test_a_missing_right_is_named() -> None:
    class NoRights(_Cluster):
        def find(self, resource: Resource, name: str) -> Json | None:
            raise ApiError(f"you have no right to get {resource} {name}", status=403, of_rights=True)

    with pytest.raises(ApiError, match="no right to get nodes node2"):
        _recover(NoRights(), GIVEN_UP)
