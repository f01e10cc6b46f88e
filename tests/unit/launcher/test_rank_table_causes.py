"""Why a job waits for its rank table: which of MindCluster's parts has not done its work, by one table."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.cluster.rank_table_causes import DEVICES
from launcher.kinds.labels import RING_CONTROLLER
from launcher.kube.api import Json
from tests.unit.launcher.explained_objects import Case, check_first_cause, objects, pod, volcano
from tests.unit.launcher.test_doctor import NPU

TABLE: dict[str, Any] = {"volumes": [{"name": "t", "configMap": {"name": "rings-config-w"}}]}
INITIALIZING = {"metadata": {"name": "rings-config-w"}, "data": {"hccl.json": '{"status":"initializing"}'}}
WAITS = b"[node 0 #3] waiting for rank table /user/hccl.json: its status is initializing\n"


def devices(address: str) -> dict[str, str]:
    """Return the annotation of MindCluster's device plugin."""
    return {DEVICES: json.dumps({"devices": [{"device_id": "0", "device_ip": address}]})}


def labelled(job: Json) -> Json:
    """Return a job that MindCluster's parts know."""
    return {**job, "metadata": {**job["metadata"], "labels": {RING_CONTROLLER: "ascend-910"}}}


def limits_only() -> Json:
    """Return a Volcano Job whose pods have their NPUs as limits only."""
    container = {"name": "trainer", "resources": {"limits": {NPU: "8"}}}
    return labelled(volcano(phase="Running", **TABLE, containers=[container]))


def waits_for_table(annotations: Mapping[str, str], table: Json | None, log: bytes = WAITS) -> JobObjects:
    """Return a running job whose pod waits for its rank table."""
    mine = pod("w-0", phase="Running", on="a", annotations=dict(annotations))
    job = labelled(volcano(phase="Running", **TABLE))
    return objects(job, [mine], rank_table=table, logs={"w-0": log})


CASES: dict[str, Case] = {
    "rank table without the device plugin": (
        waits_for_table({}, INITIALIZING),
        "rank-table",
        "MindCluster's device plugin has not written the devices of 1 of 1 pods, such as w-0",
    ),
    "rank table without an address": (
        waits_for_table(devices("-1"), INITIALIZING),
        "rank-table",
        "an NPU of pod w-0 has no address (-1)",
    ),
    "rank table without a controller": (
        waits_for_table(devices("10.0.0.1"), INITIALIZING),
        "rank-table",
        "MindCluster's controller does not write it",
    ),
    "rank table in an immutable ConfigMap": (
        waits_for_table({}, {**INITIALIZING, "immutable": True}),
        "rank-table",
        "is immutable",
    ),
    "rank table without its ConfigMap": (waits_for_table({}, None), "rank-table", "rings-config-w does not exist"),
    "rank table of a job without its label": (
        replace(waits_for_table({}, INITIALIZING), job=volcano(phase="Running", **TABLE)),
        "rank-table",
        "the job has no label ring-controller.atlas",
    ),
    "rank table of NPUs that are limits only": (
        replace(waits_for_table(devices("10.0.0.1"), INITIALIZING), job=limits_only()),
        "rank-table",
        "as limits only, and ascend-operator needs requests",
    ),
    "rank table on its way": (
        waits_for_table(devices("10.0.0.1"), {**INITIALIZING, "data": {"hccl.json": '{"status":"completed"}'}}),
        "rank-table",
        "a kubelet needs up to 80 s",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_first_cause_is_what_the_objects_show(case: Case) -> None:
    check_first_cause(case)


@pytest.mark.parametrize("line", [b"step step=1", b"start mode=full", b"a library's own words"])
def test_a_wait_that_is_over_is_no_cause(line: bytes) -> None:
    started = WAITS + b"[rank 0 npu:0 #1] " + line + b"\n"
    assert find_causes(waits_for_table({}, INITIALIZING, started)) == []
    assert [cause.rule for cause in find_causes(waits_for_table({}, INITIALIZING, started + WAITS))] == ["rank-table"]
