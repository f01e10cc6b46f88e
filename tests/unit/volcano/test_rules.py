"""The stand-in's Jobs follow Volcano's rules: their counts decide the phase, their policies react to events."""

from typing import Any

import pytest

from tests.cluster.testbed.volcano.controller import rules
from tests.cluster.testbed.volcano.controller.controller import TRIES, retry_delay
from tests.cluster.testbed.volcano.controller.job_events import JobEvents
from tests.cluster.testbed.volcano.controller.rules import JobEvent
from tests.unit.volcano.objects import Json, make_pod, make_spec


def _status(phase: str, **counts: int) -> Json:
    return {"state": {"phase": phase}, **counts}


@pytest.mark.parametrize(
    ("spec", "status", "phase"),
    [
        (make_spec(), _status("Pending", running=1, pending=1), "Pending"),
        (make_spec(), _status("Pending", running=1, succeeded=1), "Running"),
        (make_spec(), _status("Pending", failed=2), "Running"),
        (make_spec(least=0), _status("Pending"), "Running"),
        (make_spec(), _status("Running", running=1, failed=1), "Running"),
        (make_spec(), _status("Running", running=1, pending=1), "Pending"),
        (make_spec(3, 1), _status("Running", running=2, pending=1), "Running"),
        (make_spec(), _status("Running", succeeded=2), "Completed"),
        (make_spec(), _status("Running", succeeded=1, failed=1), "Failed"),
        (make_spec(2, 1), _status("Running", succeeded=1, failed=1), "Completed"),
        (make_spec(minSuccess=1), _status("Running", running=1, succeeded=1), "Completed"),
        (make_spec(minSuccess=2, least=1), _status("Running", failed=1, succeeded=1), "Failed"),
        (make_spec(0, 0), _status("Running"), "Running"),
        (make_spec(), _status("Restarting", terminating=1), "Restarting"),
        (make_spec(2, 1), _status("Restarting", terminating=1), "Pending"),
        (make_spec(), _status("Restarting", retryCount=2), "Pending"),
        (make_spec(), _status("Restarting", retryCount=3), "Failed"),
        (make_spec(), _status("Aborting", terminating=1), "Aborting"),
        (make_spec(), _status("Completed"), "Completed"),
    ],
)
def test_a_job_changes_its_phase_by_its_counts(spec: Json, status: Json, phase: str) -> None:
    assert rules.next_phase(spec, status) == phase


def test_a_job_fails_if_one_task_has_too_few_successes_though_all_together_are_enough() -> None:
    tasks = [{"name": name, "replicas": 2, "minAvailable": least} for name, least in (("m", 2), ("w", 1))]
    spec: Json = {"minAvailable": 3, "maxRetry": 3, "tasks": tasks}
    status = _status("Running", succeeded=3, failed=1)
    status["taskStatusCount"] = {"m": {"phase": {"Succeeded": 1, "Failed": 1}}, "w": {"phase": {"Succeeded": 2}}}
    assert rules.next_phase(spec, status) == "Failed"
    status["taskStatusCount"] = {"m": {"phase": {"Succeeded": 2}}, "w": {"phase": {"Succeeded": 1, "Failed": 1}}}
    assert rules.next_phase(spec, status) == "Completed"


@pytest.mark.parametrize(
    ("policies", "event", "action"),
    [
        ([{"event": "PodFailed", "action": "A"}], JobEvent("PodFailed", "w", 1, 3), "A"),
        ([{"event": "PodFailed", "action": "A"}], JobEvent("PodFailed", "w", 0, 3), None),
        ([{"event": "PodFailed", "action": "A"}], JobEvent("PodEvicted", "w", 1), None),
        ([{"events": ["PodEvicted", "PodFailed"], "action": "A"}], JobEvent("PodFailed", "w", 1, 3), "A"),
        ([{"event": "*", "action": "A"}], JobEvent("TaskCompleted", "w", 1), "A"),
        ([{"exitCode": 3, "action": "A"}], JobEvent("PodFailed", "w", 1, 3), "A"),
        ([{"exitCode": 3, "action": "A"}], JobEvent("PodFailed", "w", 1, 4), None),
        ([{"exitCode": 3, "action": "A"}, {"event": "*", "action": "B"}], JobEvent("PodFailed", "w", 1, 4), "B"),
        (
            [{"event": "PodFailed", "action": "B"}, {"exitCode": 3, "action": "A"}],
            JobEvent("PodFailed", "w", 1, 3),
            "B",
        ),
        # An event without an exit code does not match a policy without one.
        ([{"action": "A"}], JobEvent("PodEvicted", "w", 1), None),
    ],
)
def test_the_first_matching_policy_gives_the_action(policies: list[Json], event: JobEvent, action: str | None) -> None:
    assert rules.action(make_spec(policies=policies), 1, event) == action


def test_a_task_s_policies_come_before_the_job_s() -> None:
    spec = make_spec(policies=[{"event": "PodFailed", "action": "job's"}])
    spec["tasks"][0]["policies"] = [{"event": "PodFailed", "action": "task's"}]
    assert rules.action(spec, 0, JobEvent("PodFailed", "w", 0)) == "task's"
    assert rules.action(spec, 0, JobEvent("PodFailed", "other", 0)) == "job's"


def _job(version: int = 0, **others: Any) -> Json:
    spec = make_spec(policies=[{"event": "*", "action": "A"}], **others)
    return {"metadata": {"uid": "j"}, "spec": spec, "status": {"version": version}}


def _take_events(job_events: JobEvents, job: Json, *pods: Json, group: Json | None = None) -> list[JobEvent]:
    job_events.update(job, pods, group)
    events = []
    while (event := job_events.next_action(job)[0]) is not None:
        events.append(event)
    return events


def test_a_failed_pod_is_reported_once_with_the_exit_code_of_its_first_container() -> None:
    job_events, job = JobEvents(), _job()
    assert _take_events(job_events, job, make_pod(0, "Running")) == []
    failed = JobEvent("PodFailed", "w", 0, 3, "j-w-0")
    assert _take_events(job_events, job, make_pod(0, "Failed", code=3)) == [failed]
    assert _take_events(job_events, job, make_pod(0, "Failed", code=3)) == []
    assert _take_events(job_events, job, make_pod(0, "Failed", code=3, uid="another")) == [
        JobEvent("PodEvicted", "w", 0, pod="j-w-0"),
        failed,
    ]


def test_a_deleted_pod_counts_as_evicted_unless_the_controller_deleted_it() -> None:
    job_events, job = JobEvents(), _job()
    pods = [make_pod(0, "Running"), make_pod(1, "Running")]
    assert _take_events(job_events, job, *pods) == []
    job_events.expect_deletion(pods[0])
    assert _take_events(job_events, job) == [JobEvent("PodEvicted", "w", 0, pod="j-w-1")]
    assert _take_events(job_events, job) == []


def test_a_pod_that_is_deleted_has_not_failed_when_its_containers_end() -> None:
    job_events, job = JobEvents(), _job()
    pod = make_pod(0, "Failed", code=143)
    pod["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    assert _take_events(job_events, job, pod) == []


def test_events_from_before_a_restart_have_no_effect_after_it() -> None:
    job_events = JobEvents()
    done = [make_pod(0, "Succeeded"), make_pod(1, "Succeeded")]
    assert _take_events(job_events, _job(), *done) == [JobEvent("TaskCompleted", "w", 0)]
    assert _take_events(job_events, _job(), *done) == []
    assert _take_events(JobEvents(), _job(version=1), *done) == []


def test_a_task_is_complete_when_all_of_its_pods_have_succeeded() -> None:
    assert _take_events(JobEvents(), _job(), make_pod(0, "Succeeded"), make_pod(1, "Running")) == []
    assert _take_events(JobEvents(), _job(), make_pod(0, "Succeeded")) == []


def test_a_task_has_failed_when_its_containers_have_restarted_max_retry_times_in_all() -> None:
    job_events, job = JobEvents(), _job()
    job["spec"]["tasks"][0]["maxRetry"] = 3
    assert _take_events(job_events, job, make_pod(0, "Running", restarts=1), make_pod(1, "Running", restarts=1)) == []
    failed = [JobEvent("TaskFailed", "w", 0)]
    assert (
        _take_events(job_events, job, make_pod(0, "Running", restarts=2), make_pod(1, "Running", restarts=1)) == failed
    )
    assert _take_events(job_events, job, make_pod(0, "Running", restarts=2), make_pod(1, "Running", restarts=1)) == []


def test_a_group_that_becomes_unknown_is_reported_once_each_time() -> None:
    job_events, job = JobEvents(), _job()
    unknown, running = ({"status": {"phase": phase}} for phase in ("Unknown", "Running"))
    assert _take_events(job_events, job, group=unknown) == [JobEvent("Unknown", "", 0)]
    assert _take_events(job_events, job, group=unknown) == []
    assert _take_events(job_events, job, group=running) == []
    assert _take_events(job_events, job, group=unknown) == [JobEvent("Unknown", "", 0)]


@pytest.mark.parametrize(("retries", "kept"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_pods_of_the_last_attempt_remain_after_they_end(retries: int, kept: bool) -> None:
    status = {"retryCount": retries}
    assert rules.stays(make_pod(0, "Failed"), soft=False, spec=make_spec(), status=status) is kept
    assert rules.stays(make_pod(0, "Failed"), soft=True, spec=make_spec(), status=status)
    assert not rules.stays(make_pod(0, "Running"), soft=True, spec=make_spec(), status=status)


def test_the_controller_gives_up_after_164_seconds_of_failed_attempts() -> None:
    assert sum(retry_delay(number) for number in range(1, TRIES + 1)) == pytest.approx(163.8, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (14.9, "14s"), (164, "2m44s"), (3600, "1h0m0s"), (3725, "1h2m5s")]
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert rules.duration(seconds) == text
