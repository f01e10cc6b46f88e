"""Why a job failed: each rule finds its cause in pods that have ended, and in the end of their logs, by one table."""

from dataclasses import replace

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from tests.unit.launcher.explained_objects import (
    FAILED,
    Case,
    batch,
    check_first_cause,
    ended,
    event,
    objects,
    pod,
    pod_spec,
)

DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}
FIRST = 'failed rank=1 device=npu:1 cause="ValueError: no such class"'
OOM = '[node 0 #9] failed rank=0 device=cpu:0 cause="killed by SIGKILL (out of memory?)"\n'
LATE = ({"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"},)


def failed_with(log: str, *, code: int = 1, reason: str = "Error", retries: int = 0) -> JobObjects:
    """Return a failed job with the last lines of its pod."""
    return objects(batch(conditions=FAILED, failed=retries + 1), [ended(code, reason)], logs={"w-a": log.encode()})


CASES: dict[str, Case] = {
    "image of another processor": (
        objects(batch(conditions=FAILED), [ended(255)], logs={"w-a": b"exec /entrypoint.sh: exec format error\n"}),
        "architecture",
        "exec format error",
    ),
    "wrong entry point": (
        objects(
            batch(conditions=FAILED),
            [
                ended(
                    128,
                    "StartError",
                    'unable to start container process: exec: "x": executable file not found in $PATH',
                )
            ],
        ),
        "entry-point",
        'exec: "x": executable file not found in $PATH',
    ),
    "out of memory by the limit": (
        objects(batch(conditions=FAILED), [ended(137, "OOMKilled")], logs={"w-a": OOM.encode()}),
        "out-of-memory",
        "container trainer needed more memory than its limit of 64Gi",
    ),
    "out of memory on the node": (
        objects(
            batch(npus=0, conditions=FAILED),
            [ended(137, "OOMKilled", spec={}) | {"spec": pod_spec(0) | {"nodeName": "a"}}],
        ),
        "node-out-of-memory",
        "node a ran out of memory",
    ),
    "evicted": (
        objects(
            batch(conditions=FAILED),
            [pod(phase="Failed", on="a", reason="Evicted", message="The node was low on resource: memory.")],
        ),
        "evicted",
        "node a evicted pod w-a: The node was low on resource: memory",
    ),
    "preempted": (
        objects(batch(conditions=FAILED), [ended(75) | {"status": {**ended(75)["status"], "conditions": [DISRUPTED]}}]),
        "preempted",
        "the scheduler ended it for a pod of higher priority",
    ),
    "not admitted by the node": (
        objects(
            batch(conditions=FAILED),
            [
                pod(
                    phase="Failed",
                    on="a",
                    reason="UnexpectedAdmissionError",
                    message="Allocate failed: no healthy devices",
                )
            ],
        ),
        "admission",
        "node a did not admit pod w-a",
    ),
    "past its deadline": (objects(batch(conditions=LATE), [ended(75)]), "deadline", "longer than its --deadline"),
    "crash loop": (
        failed_with(f"[node 0 #4] {FIRST}\n", retries=3),
        "crash-loop",
        "rank 1 on npu:1: ValueError: no such class (the last of 4 tries)",
    ),
    "first failing rank": (
        failed_with(f"[node 0 #4] {FIRST}\n"),
        "first-failure",
        "rank 1 on npu:1: ValueError: no such",
    ),
    "settings that the trainer refuses": (
        failed_with("error: --data-path /data: no such folder\n", code=2),
        "refused-settings",
        "--data-path /data: no such folder",
    ),
    "an error of HCCL": (
        failed_with(
            "[rank 3 npu:3 #8] EI0002: the wait of the Notify register times out\n"
            "[rank 5 npu:5 #9] [ERROR] ERR02200 DIST EI0013: error cqe\n"
            '[node 0 #9] failed rank=5 device=npu:5 cause="HCCL failed in HcclAllReduce: its own words follow"\n'
        ),
        "device-error",
        "rank 5 on npu:5: the network between two devices lost a transfer (EI0013)",
    ),
    "pod that was killed without a reason": (
        failed_with("", code=137),
        "pod-failed",
        "exit code 137: SIGKILL ended it, as when it needs more than its --memory",
    ),
    "pod that failed without words": (failed_with("", code=3), "pod-failed", "pod w-a failed: exit code 3"),
    "job that failed without pods": (objects(batch(conditions=FAILED)), "job-failed", "BackoffLimitExceeded: m"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_first_cause_is_what_the_objects_show(case: Case) -> None:
    check_first_cause(case)


@pytest.mark.parametrize(("ago", "rules"), [(30, ["preempted", "first-failure"]), (550, ["first-failure"])])
def test_the_end_of_a_pod_before_the_failed_one_began_is_no_cause(ago: float, rules: list[str]) -> None:
    seen = failed_with(f"[node 0 #4] {FIRST}\n")
    gone = event(pod("w-gone"), "Preempted", "Preempted by pod x on node a", ago=ago)
    assert [cause.rule for cause in find_causes(replace(seen, events=[gone]))] == rules


def test_an_error_before_the_workers_were_started_again_is_no_cause() -> None:
    error = "[rank 5 npu:5 #9] [ERROR] ERR02200 DIST EI0013: error cqe\n"
    restart = '[node 0 #5] restart attempt=2 rank=5 device=npu:5 cause="exit code 1"\n'
    end = f"[node 0 #9] {FIRST}\n"
    rules = {
        log: [cause.rule for cause in find_causes(failed_with(log))] for log in (error + end, error + restart + end)
    }
    assert list(rules.values()) == [["device-error", "first-failure"], ["first-failure"]]


def test_an_error_that_only_follows_from_another_ranks_comes_last() -> None:
    seen, _, _ = CASES["an error of HCCL"]
    assert [cause.text.partition(": ")[0] for cause in find_causes(seen)] == ["rank 5 on npu:5"] * 2 + [
        "rank 3 on npu:3"
    ]
