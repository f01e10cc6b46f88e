"""A job's phase and its pending reasons follow from objects as real controllers write them."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.pending import container_failure, why_pending
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
