"""A job's phase and its pending reasons follow from objects as real controllers write them."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.failures import container_failure, log_failure
from launcher.cluster.pending import why_pending
from launcher.jobs import Phase
from launcher.kinds import CANCELLED, kind_named

BATCH, VOLCANO = kind_named("batch"), kind_named("volcano")
RECORDED = Path(__file__).parents[2] / "data" / "volcano" / "samples"


def no_events(_item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return no events."""
    return []


def batch(*conditions: str, **spec: Any) -> dict[str, Any]:
    items = [{"type": kind, "status": "True", "reason": "R", "message": "m"} for kind in conditions]
    return {"apiVersion": "batch/v1", "metadata": {"name": "a"}, "spec": spec, "status": {"conditions": items}}


def pod(phase: str, **status: Any) -> dict[str, Any]:
    meta = {"name": "a-x", "uid": "u"}
    return {"metadata": meta, "spec": {"nodeName": "n"}, "status": {"phase": phase, **status}}


@pytest.mark.parametrize(
    ("job", "pods", "phase", "reason"),
    [
        (batch(), [], Phase.PENDING, ""),
        (batch(), [pod("Pending")], Phase.PENDING, ""),
        (batch(), [pod("Running")], Phase.RUNNING, ""),
        (batch(), [pod("Succeeded")], Phase.RUNNING, ""),
        (batch(), [pod("Failed")], Phase.PENDING, "waiting for the next try"),
        (batch("FailureTarget"), [pod("Running")], Phase.RUNNING, "ending"),
        (batch("FailureTarget"), [pod("Failed")], Phase.RUNNING, "ending"),
        (batch("SuccessCriteriaMet", "Complete"), [], Phase.SUCCEEDED, ""),
        (batch("Failed"), [], Phase.FAILED, "R: m"),
        (batch(suspend=True), [pod("Running")], Phase.RUNNING, "stopping"),
        (batch(suspend=True), [], Phase.SUSPENDED, "suspended"),
    ],
)
def test_the_phase_of_a_kubernetes_job_follows_from_its_conditions(
    job: dict[str, Any], pods: list[dict[str, Any]], phase: Phase, reason: str
) -> None:
    assert BATCH.phase(job, pods) == (phase, reason)


def test_a_failed_pod_changes_the_phase_only_after_the_controller_counted_it() -> None:
    failed = pod("Failed")
    failed["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"]
    assert BATCH.phase(batch(), [failed]) == (Phase.RUNNING, "")


def test_a_job_that_a_user_stopped_is_cancelled_and_not_failed() -> None:
    job = batch(suspend=True)
    job["metadata"]["annotations"] = {CANCELLED: "2026-11-24T00:00:00Z"}
    assert BATCH.phase(job, [])[0] is Phase.CANCELLED
    volcano: dict[str, Any] = {"metadata": job["metadata"], "spec": {}, "status": {"state": {"phase": "Aborted"}}}
    assert VOLCANO.phase(volcano, [])[0] is Phase.CANCELLED
    volcano["metadata"] = {"name": "a"}
    assert VOLCANO.phase(volcano, [])[0] is Phase.SUSPENDED


def test_a_job_that_fails_after_a_withdrawn_cancel_has_failed() -> None:
    job = batch("Failed", suspend=False)
    job["metadata"]["annotations"] = {CANCELLED: "2026-11-24T00:00:00Z"}
    assert BATCH.phase(job, [])[0] is Phase.FAILED
    job["spec"]["suspend"] = True
    assert BATCH.phase(job, [])[0] is Phase.CANCELLED


@pytest.mark.parametrize("own", ["Pending", "Running", "Restarting", "Completing", "Terminating", "Aborting", ""])
def test_a_volcano_job_in_a_transient_phase_has_not_ended(own: str) -> None:
    job = {"metadata": {"name": "a"}, "spec": {}, "status": {"state": {"phase": own}} if own else {}}
    assert not VOLCANO.phase(job, [])[0].ended


@pytest.mark.parametrize(
    ("own", "phase"), [("Completed", Phase.SUCCEEDED), ("Failed", Phase.FAILED), ("Terminated", Phase.FAILED)]
)
def test_the_phase_of_an_ended_volcano_job_follows_only_from_its_own_phase(own: str, phase: Phase) -> None:
    job = {"metadata": {"name": "a"}, "spec": {}, "status": {"state": {"phase": own}}}
    assert VOLCANO.phase(job, [])[0] is phase


def test_the_most_direct_reason_of_waiting_is_shown() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
    job = batch()
    both = [pod("Pending", conditions=[unplaced]), pod("Pending", containerStatuses=[waiting])]
    assert why_pending(BATCH, job, both, None, no_events, now=0) == "ImagePullBackOff: no such image (2 pods wait)"
    assert why_pending(BATCH, job, both[:1], None, no_events, now=0) == "0/2 nodes"
    starting = pod("Pending", containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}])
    assert why_pending(BATCH, job, [starting], None, no_events, now=0) == ""


def test_volcanos_components_are_named_if_they_do_nothing_for_some_time() -> None:
    made = {"creationTimestamp": "2026-11-24T00:00:00Z"}
    began = datetime(2026, 11, 24, tzinfo=timezone.utc).timestamp()
    job = {"apiVersion": "batch.volcano.sh/v1alpha1", "metadata": {"name": "a", "uid": "j", **made}, "spec": {}}
    group = {"metadata": {"name": "g", "uid": "g", **made}, "status": {}}
    assert why_pending(VOLCANO, job, [], None, no_events, now=began + 1) == ""
    assert "controller" in why_pending(VOLCANO, job, [], None, no_events, now=began + 60)
    assert "scheduler" in why_pending(VOLCANO, job, [], group, no_events, now=began + 60)
    new_group = {**group, "metadata": {**group["metadata"], "creationTimestamp": "2026-11-24T00:00:59Z"}}
    assert why_pending(VOLCANO, job, [], new_group, no_events, now=began + 60) == "", "the job has just restarted"
    queued = {**group, "status": {"phase": "Pending"}}
    event = {"involvedObject": {"uid": "g"}, "type": "Normal", "reason": "Unschedulable", "message": "overused x"}
    assert why_pending(VOLCANO, job, [], queued, lambda _: [event], now=began + 60) == "queued: overused x"
    admitted = {**group, "status": {"phase": "Inqueue"}}
    assert why_pending(VOLCANO, job, [], admitted, no_events, now=began + 1) == ""
    assert "does the namespace refuse them" in why_pending(VOLCANO, job, [], admitted, no_events, now=began + 60)


def test_a_failed_container_gives_its_exit_code_and_reason() -> None:
    killed = container("trainer", 137, "OOMKilled")
    assert container_failure(pod("Failed", containerStatuses=[killed])) == "exit code 137 (OOMKilled)"
    assert container_failure(pod("Failed", reason="Evicted")) == "Evicted"
    assert container_failure(pod("Succeeded", containerStatuses=[container("trainer", 0, "Completed")])) == ""


RUNC = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            f'{RUNC}exec: "trainr": executable file not found in $PATH: unknown',
            'exec: "trainr": executable file not found in $PATH; does the --image have the trainer',
        ),
        (
            f"{RUNC}exec /probe: exec format error: unknown",
            "exec /probe: exec format error; the image is built for another processor",
        ),
        ("some other\nwords", "some other words"),
    ],
)
def test_a_container_that_cannot_be_started_gives_the_runtimes_cause_and_the_next_step(
    message: str, shown: str
) -> None:
    ended = {"name": "trainer", "state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": message}}}
    failure = container_failure(pod("Failed", containerStatuses=[ended]))
    assert failure.startswith(f"exit code 128 (StartError: {shown}")


def test_a_log_that_only_says_exec_format_error_names_the_wrong_processor() -> None:
    assert log_failure(b"exec /entrypoint.sh: exec format error\n").startswith(
        "exec /entrypoint.sh: exec format error; the image is built for another processor"
    )
    assert log_failure(b"[node 0 #1] ended lines=0:1 outcome=failed\n") == ""
    assert log_failure(b"") == ""


def unplaced(message: str) -> dict[str, Any]:
    """Return a pod with one NPU for which the scheduler finds no node."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    resources = {"requests": {"huawei.com/Ascend910": "1"}}
    spec = {"containers": [{"resources": resources}]}
    return {**pod("Pending", conditions=[condition]), "spec": spec}


def tainted(name: str) -> dict[str, Any]:
    """Return a node with a taint."""
    taints = [{"key": "npu", "effect": "NoSchedule"}]
    status = {"capacity": {"huawei.com/Ascend910": "8"}, "allocatable": {"huawei.com/Ascend910": "8"}}
    return {"metadata": {"name": name, "labels": {}}, "spec": {"taints": taints}, "status": status}


@pytest.mark.parametrize(
    ("message", "nodes", "advice"),
    [
        ("2 node(s) had untolerated taint(s)", None, "; tolerate the taint with --toleration, or choose other nodes"),
        ("2 node(s) were unschedulable", None, "; the administrator has cordoned them"),
        ("2 node(s) didn't match Pod's node affinity/selector", None, "; check --node-selector and --hardware"),
        ("2 Insufficient huawei.com/Ascend910", None, "; wait until other jobs end, or ask for less"),
        ("some other reason", None, ""),
        ("2 node(s) had untolerated taint(s)", [tainted("a"), tainted("b")], "; a, b tainted npu:NoSchedule (choose"),
        ("2 Insufficient huawei.com/Ascend910", [tainted("a") | {"spec": {}}], ""),
    ],
)
def test_a_pod_without_a_node_names_the_nodes_and_the_next_step(message: str, nodes: Any, advice: str) -> None:
    reason = why_pending(BATCH, batch(), [unplaced(message)], None, no_events, now=0, nodes=lambda: nodes)
    assert reason == message if not advice else reason.startswith(message + advice)


def test_a_pod_that_no_scheduler_has_looked_at_says_so_after_some_seconds() -> None:
    made = {"creationTimestamp": "2026-11-24T00:00:00Z"}
    began = datetime(2026, 11, 24, tzinfo=timezone.utc).timestamp()
    waiting = {"metadata": {"name": "a-x", "uid": "u", **made}, "spec": {"schedulerName": "nobody"}} | {
        "status": {"phase": "Pending"}
    }
    assert why_pending(BATCH, batch(), [waiting], None, no_events, now=began + 1) == ""
    reason = why_pending(BATCH, batch(), [waiting], None, no_events, now=began + 60)
    assert reason == "no scheduler named nobody has looked at it; is it running?"


def test_a_queued_gang_that_the_nodes_can_never_take_says_so() -> None:
    template = {"spec": unplaced("")["spec"]}
    job = {"metadata": {"name": "a", "uid": "j"}, "spec": {"minAvailable": 1, "tasks": [{"template": template}]}}
    queued = {"metadata": {"name": "g", "uid": "g"}, "status": {"phase": "Pending"}}
    reason = why_pending(VOLCANO, job, [], queued, no_events, now=60, nodes=lambda: [tainted("a")])
    assert reason.startswith("queued by Volcano; the job needs 1 node with 1 huawei.com/Ascend910, and 0 of 1 can take")
    free = tainted("a") | {"spec": {}}
    assert why_pending(VOLCANO, job, [], queued, no_events, now=60, nodes=lambda: [free]) == "queued by Volcano"


def test_another_failed_container_is_named_if_the_trainer_did_not_fail() -> None:
    data, side = container("data", 3, "Error"), container("a-sidecar", 9, "Error")
    assert container_failure(pod("Failed", initContainerStatuses=[data])) == "container data: exit code 3"
    both = [side, container("trainer", 1, "Error")]
    assert container_failure(pod("Failed", containerStatuses=both)) == "exit code 1"


def container(name: str, code: int, reason: str) -> dict[str, Any]:
    """Return the status of an ended container."""
    return {"name": name, "state": {"terminated": {"exitCode": code, "reason": reason}}}


@pytest.mark.parametrize(
    ("failed", "nodes", "conditions", "restarts"),
    [
        (0, 1, (), 0),
        (1, 1, (), 1),
        (1, 1, ("Failed",), 0),
        (4, 1, ("Failed",), 3),
        (1, 1, ("Complete",), 1),
        (2, 2, (), 1),
        (1, 2, (), 1),
        (8, 2, ("Failed",), 3),
        (2, 2, ("FailureTarget",), 0),
    ],
)
def test_a_restart_is_an_attempt_after_another_attempt(
    failed: int, nodes: int, conditions: tuple[str, ...], restarts: int
) -> None:
    job = batch(*conditions, completions=nodes)
    job["status"]["failed"] = failed
    assert BATCH.retries(job) == restarts


def test_a_restart_that_volcano_counts_but_does_not_perform_does_not_count() -> None:
    """The recorded job had maxRetry 2 and ran twice."""
    (job,) = json.loads((RECORDED / "failed-after-maxretry.json").read_text())["jobs"]
    assert job["status"]["retryCount"] == job["spec"]["maxRetry"] == 2
    assert VOLCANO.retries(job) == 1
    job["status"]["state"]["phase"] = "Running"
    assert VOLCANO.retries(job) == 2


def test_a_volcano_job_that_fails_after_a_withdrawn_cancel_has_failed() -> None:
    job: dict[str, Any] = {"metadata": {"name": "a", "annotations": {CANCELLED: "2026-11-24T00:00:00Z"}}, "spec": {}}
    history = [{"status": phase, "lastTransitionTime": "2026-11-24T00:00:00Z"} for phase in ("Aborting", "Aborted")]
    job["status"] = {"state": {"phase": "Aborted"}, "conditions": history}
    assert VOLCANO.phase(job, [])[0] is Phase.CANCELLED
    job["status"]["state"]["phase"] = "Failed"
    assert VOLCANO.phase(job, [])[0] is Phase.FAILED
    job["status"]["conditions"] = history[:1]
    assert VOLCANO.phase(job, [])[0] is Phase.CANCELLED, "a user stopped it during its last attempt"
