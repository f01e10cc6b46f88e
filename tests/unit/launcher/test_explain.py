"""`explain` reads what the user can see, says what is hidden, and shows foreign words as text."""

import json
import time
from typing import Any, cast

import pytest

from launcher.cluster.jobs import ClusterJobs
from launcher.errors import ApiError, NotFoundError
from launcher.jobs import Cause, Explanation, JobRef, JobState, Phase
from launcher.kinds import kind_named
from launcher.kinds.batch import BATCH_JOBS
from launcher.kube.api import Api, Json
from launcher.kube.resources import CONFIG_MAPS, EVENTS, NODES, PODS, Resource
from launcher.output.explanation import explanation_document, explanation_text
from tests.documents import one_document
from tests.unit.launcher.explained_objects import batch, ended, running, unplaced
from tests.unit.launcher.test_doctor import NPU, node

JOB = {**batch(), "metadata": {**batch()["metadata"], "namespace": "training"}}
LEFT = b"[rank 0 npu:0 #1] progress done=0.3 left_s=600\n"


class Server:
    """An API server with one job, its pods, and others.

    Attributes:
        hidden: the resources that the user has no right to read; pods of all namespaces are `everywhere`.
        report: the answer to a request for MindCluster's report.
    """

    origin, namespace = "here", "training"

    def __init__(self, pods: list[Json], *others: Json, job: Json = JOB, logs: bytes = b"") -> None:
        self.pods, self.others, self.job, self.logs = pods, list(others), job, logs
        self.hidden: set[str] = set()
        self.report: Json = {}

    def find(self, resource: Resource, name: str) -> Json | None:
        return self.job if resource == BATCH_JOBS and name == "w" else None

    def list(self, resource: Resource, *, labels: str = "", fields: str = "", **_: Any) -> tuple[list[Json], str]:
        name = "everywhere" if resource == PODS._replace(namespaced=False) else resource.plural
        if name in self.hidden:
            raise ApiError(f"here: you have no right to list {name}", status=403, of_rights=True)
        lists = {NODES: [node("a"), node("b")], EVENTS: []}
        pods = self.pods if labels else [*self.pods, *self.others]
        return lists.get(resource, pods if resource.plural == "pods" else []), "1"

    def request(self, _method: str, path: str, *, action: str, **_: Any) -> Json:
        assert action
        if CONFIG_MAPS.plural in path and self.report:
            return self.report
        raise ApiError("not found", status=404)

    def read(self, _path: str, _query: dict[str, str], *, action: str) -> bytes:
        assert action
        return self.logs


def explain(server: Server) -> Explanation:
    """Return the explanation of the server's job."""
    return ClusterJobs(kind_named("batch"), cast("Api", server)).explain(JobRef("batch", "w"))


BUSY = (running("x", "a"), running("y", "b"))


def test_a_job_that_holds_the_devices_says_itself_until_when() -> None:
    cause = explain(Server([unplaced()], *BUSY, logs=LEFT)).causes[0]
    assert cause.rule == "devices-in-use"
    assert cause.text.count(" until about ") == 2, cause.text
    for impossible in (b"1e300", b"-600", b"nan", b"soon"):
        cause = explain(Server([unplaced()], *BUSY, logs=LEFT.replace(b"600", impossible))).causes[0]
        assert (cause.rule, cause.text.count(" until about ")) == ("devices-in-use", 0)


@pytest.mark.parametrize(
    ("hidden", "rule", "text"),
    [
        ({"everywhere"}, "devices-in-use", "job x uses 8"),
        ({"everywhere", "events"}, "devices-in-use", "job x uses 8"),
        ({"nodes"}, "devices-in-use", f"0/2 nodes are available: 2 Insufficient {NPU}."),
    ],
)
def test_a_user_with_fewer_rights_learns_less_and_what_is_hidden(hidden: set[str], rule: str, text: str) -> None:
    server = Server([unplaced()], *BUSY)
    server.hidden = hidden
    explanation = explain(server)
    assert (explanation.causes[0].rule, text in explanation.causes[0].text) == (rule, True), explanation.causes
    assert explanation.hidden == [
        f"here: you have no right to list {name}" for name in sorted(hidden, key="events everywhere nodes".index)
    ]


def test_a_user_without_rights_on_pods_learns_that_they_are_hidden() -> None:
    server = Server([unplaced()], *BUSY)
    server.hidden = {"pods", "everywhere", "nodes", "events"}
    explanation = explain(server)
    assert {line.rpartition(" ")[2] for line in explanation.hidden} == server.hidden


@pytest.mark.parametrize(
    "data", [{}, {"w.job": "{"}, {"w.job": "[]"}, {"w.job": '{"conditions": null}'}, {"other": "{}"}]
)
def test_a_damaged_report_of_mindcluster_is_no_cause(data: Json) -> None:
    server = Server([unplaced()], *BUSY)
    server.report = {"data": data}
    assert explain(server).causes[0].rule == "devices-in-use"


def test_the_log_of_a_failed_job_is_explained_from_its_end() -> None:
    failed = batch(
        conditions=({"type": "Failed", "status": "True", "reason": "R", "lastTransitionTime": "2026-11-30T10:00:00Z"},)
    )
    log = b"[rank 3 npu:3 #8] EI0013: An error CQE occurred\n"
    explanation = explain(Server([ended(1)], job=failed, logs=log))
    assert explanation.state.phase is Phase.FAILED
    assert explanation.state.reason == explanation.causes[0].text
    assert explanation.causes[0].text.startswith("rank 3 on npu:3: the network between two devices lost")


def test_a_cluster_without_this_kind_of_jobs_says_so() -> None:
    jobs = ClusterJobs(kind_named("volcano"), cast("Api", Server([])))
    with pytest.raises(NotFoundError, match="no volcano job `w`: here, namespace training has no Volcano"):
        jobs.explain(JobRef("volcano", "w"))


STATE = JobState(JobRef("batch", "w"), Phase.PENDING, created=1.0)


def test_the_text_has_the_first_cause_its_evidence_the_next_steps_and_the_other_causes() -> None:
    first = Cause("taint", "a is tainted", ("scheduler: \x1b[2Jno", "two"), ("python -m launcher status x", "wait"))
    text = explanation_text(
        Explanation(STATE, [first, Cause("b", "more")], ["a fact"]), now=61.0, where=" --namespace n"
    )
    assert text.splitlines() == [
        "job       w: Pending for 1 min",
        "why       a is tainted",
        r"evidence  scheduler: \x1b[2Jno",
        "          two",
        "next      python -m launcher status x --namespace n",
        "          wait",
        "also      more",
        "hidden    a fact",
    ]


@pytest.mark.parametrize("phase", Phase)
def test_a_job_without_a_cause_says_so(phase: Phase) -> None:
    state = JobState(JobRef("batch", "w"), phase, reason="the reason")
    lines = explanation_text(Explanation(state, []), now=time.time(), where="").splitlines()
    assert lines[1].startswith("why  ")
    assert len(lines) == (2 if phase.ended else 3)


def test_the_document_has_its_schema() -> None:
    explanation = Explanation(STATE, [Cause("taint", "a is tainted", ("x",), ("wait",))], ["a fact"])
    document = one_document(json.dumps(explanation_document(explanation)), "Explanation")
    assert document["causes"] == [{"rule": "taint", "text": "a is tainted", "evidence": ["x"], "steps": ["wait"]}]
