"""Recorded jobs: each gets its cause, and none when it runs in the end.

They come from the test bed, where something kept them, and from a cluster with the real Volcano.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.jobs import Phase, PreflightFinding
from launcher.kinds import kind_named
from launcher.kinds.needs import PodNeeds
from launcher.kinds.objects import timestamp_now, unix_time
from launcher.kinds.volcano import check_queue
from tests.unit.launcher import test_causes, test_failure_causes, test_rank_table_causes
from tests.unit.launcher.test_doctor import node
from tests.unit.volcano.objects import NAMES, pods_of, read_sample

RECORDED = sorted((Path(__file__).parents[2] / "data" / "explain").glob("*.json"))
EVERY = pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the rule that a recording shows, and the objects' values."""
    values: dict[str, Any] = json.loads(path.read_text())
    queue = values["queue"]
    return values.pop("rule"), {
        **values,
        "kind": kind_named(values["kind"]),
        "claims": [PreflightFinding(*finding) for finding in values["claims"]],
        "queue": None if queue is None else PreflightFinding(*queue),
        "logs": {name: text.encode() for name, text in values["logs"].items()},
    }


def test_each_rule_has_a_recording_of_a_real_case() -> None:
    tables = (test_causes.CASES, test_failure_causes.CASES, test_rank_table_causes.CASES)
    rules = {rule for cases in tables for _, rule, _ in cases.values()}
    assert rules - {read(path)[0] for path in RECORDED} == set()


@EVERY
def test_a_recorded_job_gets_its_cause(path: Path) -> None:
    rule, values = read(path)
    causes = find_causes(JobObjects(**values))
    assert causes[0].rule == rule, causes


def test_a_job_in_a_missing_queue_of_kueue_learns_how_to_see_the_queues() -> None:
    _, values = read(next(path for path in RECORDED if path.stem == "strayed"))
    assert [cause.steps for cause in find_causes(JobObjects(**values))][-1] == ("kubectl get localqueues",)


@EVERY
def test_the_same_job_has_no_cause_when_it_runs_though_its_events_remain(path: Path) -> None:
    _, values = read(path)
    job, started = copy.deepcopy(values["job"]), timestamp_now()
    job["status"] = {"state": {"phase": "Running"}}
    job["spec"].pop("suspend", None)
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": started}
    container = {"name": "trainer", "state": {"running": {"startedAt": started}}}
    status = {"phase": "Running", "conditions": [placed], "containerStatuses": [container]}
    count = max(JobObjects(**values).pod_count, 1)
    spec = JobObjects(**values).pod_spec
    pods = [
        {"metadata": {"name": f"p-{number}", "uid": f"p-{number}", "creationTimestamp": started}, "status": status}
        | {"spec": {**spec, "nodeName": f"node{number}"}}
        for number in range(count)
    ]
    gang = values["gang"] and {**values["gang"], "status": {"phase": "Running"}}
    later = {**values, "job": job, "pods": pods, "gang": gang, "queued": "", "queue": None, "logs": {}, "report": ""}
    assert find_causes(JobObjects(**later)) == []


# The recorded cluster had one node of eight NPUs. None: the recorded job is well, or it ended as it should.
VOLCANO_CAUSES: dict[str, str] = {
    "aborted-by-command": "suspended",
    "any-event-abort": "suspended",
    "partial-minavailable-1-of-3": "devices-in-use",
    "gang-pending": "gang-too-large",
    "gang-pending-requests": "gang-too-large",
    "nodeselector-mismatch": "node-selector",
    "one-pod-asks-16-of-8": "node-too-small",
    "queue-capability-too-small": "queue",
    "second-job-waits": "devices-in-use",
    "second-job-waits-requests-set": "devices-in-use",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_of_a_real_volcano_gets_no_wrong_cause(name: str) -> None:
    sample = read_sample(name)
    rules = set()
    for job in sample["jobs"]:
        mine = pods_of(job, sample)
        gang = next(
            (group for group in sample["groups"] if group["metadata"]["name"].endswith(job["metadata"]["uid"])), None
        )
        small = {"apiVersion": "v1", "metadata": {"name": "q"}, "spec": {"capability": {"cpu": "5m"}}}
        capability = check_queue(
            job["spec"]["queue"],
            small if name == "queue-capability-too-small" else {"metadata": {}, "spec": {}},
            PodNeeds(job["spec"]["tasks"][0]["template"]["spec"], job["spec"]["minAvailable"], ""),
            hidden="",
            origin="here",
        )
        seen = JobObjects(
            kind_named("volcano"),
            job,
            mine,
            (unix_time(job["metadata"]["creationTimestamp"]) or 0) + 60,
            gang,
            nodes=[node("node1")],
            others=[pod for pod in sample["pods"] if pod not in mine],
            queue=None if mine else capability,
        )
        causes = find_causes(seen)
        rules |= {cause.rule for cause in causes[:1]} if not seen.phase.ended else set()
        if seen.phase is Phase.FAILED:
            assert {cause.rule for cause in causes} <= {"pod-failed", "job-failed"}, causes
    assert rules == ({VOLCANO_CAUSES[name]} if name in VOLCANO_CAUSES else set())
