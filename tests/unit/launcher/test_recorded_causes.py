"""Jobs of the test bed, recorded while something kept them: each gets its cause, and none when it runs in the end."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.jobs import PreflightFinding
from launcher.kinds import kind_named
from launcher.kinds.objects import timestamp_now

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


def test_every_recording_is_read() -> None:
    assert len(RECORDED) >= 30


@EVERY
def test_a_recorded_job_gets_its_cause(path: Path) -> None:
    rule, values = read(path)
    causes = find_causes(JobObjects(**values))
    assert causes[0].rule == rule, causes


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
