"""What a cluster's objects say of a job, where several of them say something, or one is gone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from launcher.cluster.follow import _Job
from launcher.cluster.jobs import ClusterBackend
from launcher.cluster.kinds import BatchKind
from launcher.commands.resume import find_cluster_earlier
from launcher.jobs import Ended, Phase
from launcher.kube.api import Api, Json
from launcher.kube.resources import Resource
from launcher.settings.layers import resolve_settings
from launcher.settings.spec import make_cluster_spec

FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"} | {
    "lastTransitionTime": "2026-11-26T08:01:00Z"
}
JOB = {"metadata": {"name": "pair", "uid": "j"}, "spec": {"completions": 2}, "status": {"conditions": [FAILED]}}


def failed(name: str, node: str, at: str, code: int = 1) -> Json:
    """A pod that has failed."""
    state = {"terminated": {"exitCode": code, "finishedAt": f"2026-11-26T08:00:{at}Z"}}
    status = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}]}
    return {"metadata": {"name": name}, "spec": {"hostname": node}, "status": status}


class Server:
    """What of an API server is needed here: pods with the ends of their logs."""

    origin, namespace = "here", "training"

    def __init__(self, *pods: tuple[Json, str]) -> None:
        self._pods = pods

    def list(self, _kind: Resource, **_: str) -> tuple[list[Json], str]:
        return [pod for pod, _ in self._pods], "1"

    def read(self, path: str, _query: dict[str, str], *, what: str) -> bytes:
        assert what
        (text,) = (text for pod, text in self._pods if f"/{pod['metadata']['name']}/" in path)
        return f"[node 0 #1] {text}\n".encode() if text else b""


def reason(*pods: tuple[Json, str]) -> str:
    """Why the job of these pods has failed."""
    backend = ClusterBackend("batch", cast("Api", Server(*pods)))
    return backend.state_of(JOB, [pod for pod, _ in pods]).reason


LOST = 'failed rank=0 device=npu:0 cause="Connection closed by peer"'
MEMORY = 'failed rank=1 device=npu:0 cause="out of memory"'


def test_the_cause_is_that_of_the_pod_that_ended_first_and_not_of_those_that_lost_a_peer() -> None:
    why = reason((failed("pair-0-a", "pair-0", "09"), LOST), (failed("pair-1-b", "pair-1", "05"), MEMORY))
    assert why == "rank 1 on npu:0: out of memory (pod pair-1-b: exit code 1)"


def test_where_the_first_pod_says_nothing_another_is_heard_beside_its_end() -> None:
    why = reason((failed("pair-0-a", "pair-0", "09"), LOST), (failed("pair-1-b", "pair-1", "05", 137), ""))
    assert why == "rank 0 on npu:0: Connection closed by peer (pod pair-1-b: exit code 137)"


def test_of_several_tries_the_last_one_is_heard() -> None:
    earlier = [(failed("pair-0-a", "pair-0", "04"), LOST), (failed("pair-1-b", "pair-1", "03"), "error disk full")]
    last = [(failed("pair-0-c", "pair-0", "29"), LOST), (failed("pair-1-d", "pair-1", "25"), MEMORY)]
    assert reason(*earlier, *last) == "rank 1 on npu:0: out of memory (pod pair-1-d: exit code 1)"


@pytest.mark.parametrize(("ended", "outcomes"), [(True, 1), (False, 0)])
def test_a_job_that_is_removed_after_its_end_has_ended_as_it_did(ended: bool, outcomes: int) -> None:
    job = object.__new__(_Job)
    nothing: Any = SimpleNamespace(objects=list)
    job._jobs = job._pods = nothing
    job._last = None
    job.backend = cast("Any", SimpleNamespace(kind=BatchKind(), state_of=lambda found, _: found["metadata"]["uid"]))
    assert list(job.outcome()) == []
    job._remember({**JOB, "status": JOB["status"] if ended else {}}, True)
    assert list(job.outcome()) == [Ended(cast("Any", "j"))] * outcomes


def test_a_continued_job_keeps_what_its_overlay_said(tmp_path: Any) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("spec: {hostNetwork: true}\n")
    first = resolve_settings({"image": "r/p:1", "name": "x", "overlay": overlay}, None, {})
    spec = make_cluster_spec(first.options, first.train, first.given, backend="batch", overlay=first.overlay)
    overlay.unlink()
    state = SimpleNamespace(spec=spec.model_dump(mode="json"), attempt=1, phase=Phase.FAILED)
    backend: Any = SimpleNamespace(name="batch", get=lambda _: state)
    flags = {"name": "x", "resume": "auto"}
    name, earlier = find_cluster_earlier(resolve_settings(flags, None, {}), backend)
    again = resolve_settings({**flags, "name": name}, None, {}, earlier=earlier)
    second = make_cluster_spec(again.options, again.train, again.given, backend="batch", overlay=again.overlay)
    assert second.overlay == {"spec": {"hostNetwork": True}}
    overlay.write_text("spec: {}\n")
    other = resolve_settings({**flags, "overlay": overlay}, None, {}, earlier=earlier)
    third = make_cluster_spec(other.options, other.train, other.given, backend="batch", overlay=other.overlay)
    assert third.overlay == {"spec": {}}
