"""The stand-in's webhook accepts, completes and refuses objects like Volcano's, in the same words."""

import copy
from typing import Any

import pytest

from tests.cluster.testbed.volcano.webhook import admission
from tests.unit.volcano.objects import NAMES, Json, read_sample

OPEN: Json = {"spec": {"weight": 1, "parent": "root"}, "status": {"state": "Open"}}
QUEUES = {
    "root": {"spec": {}, "status": {"state": "Open"}},
    "default": OPEN,
    "shut": {"spec": {}, "status": {"state": "Closing"}},
    "parent": {"spec": {}, "status": {"state": "Open"}},
    "child": {"spec": {"parent": "parent"}, "status": {"state": "Open"}},
}


def _submitted(name: str = "j", **changes: Any) -> Json:
    tasks = [{"replicas": 2, "template": {}}]
    return admission.defaulted_job({"metadata": {"name": name}, "spec": {"tasks": tasks, **changes}})


@pytest.mark.parametrize("name", NAMES)
def test_jobs_that_a_real_webhook_accepted_are_accepted(name: str) -> None:
    for job in read_sample(name)["jobs"]:
        queues = {**QUEUES, job["spec"]["queue"]: OPEN}
        assert admission.job_refusal(job, queues, {}) == ""
        assert admission.defaulted_job(job)["spec"] == job["spec"]


def test_a_max_retry_of_zero_gets_the_default() -> None:
    assert _submitted(maxRetry=0)["spec"]["maxRetry"] == 3
    assert _submitted(maxRetry=1)["spec"]["maxRetry"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "No task specified in job spec"),
        ({"minAvailable": 3}, "job 'minAvailable' should not be greater than total replicas in tasks;"),
        ({"minAvailable": -1}, "job 'minAvailable' must be >= 0."),
        ({"maxRetry": -1}, "'maxRetry' cannot be less than zero."),
        ({"ttlSecondsAfterFinished": -1}, "'ttlSecondsAfterFinished' cannot be less than zero."),
        ({"plugins": {"none": []}}, "unable to find job plugin: none;"),
        ({"queue": "no"}, 'unable to find job queue: queue.scheduling.volcano.sh "no" not found;'),
        ({"queue": "shut"}, "can only submit job to queue with state `Open`, queue `shut` status is `Closing`;"),
        ({"queue": "parent"}, "can only submit job to leaf queue, queue `parent` has 1 child queues;"),
        (
            {"tasks": [{"name": "a", "replicas": 1, "minAvailable": 2}]},
            "'minAvailable' is greater than 'replicas' in task: a, job: j;",
        ),
        ({"tasks": [{"name": "a", "replicas": -1}], "minAvailable": 1}, "'replicas' < 0 in task: a, job: j;"),
        (
            {"tasks": [{"name": "a", "replicas": 1, "minAvailable": -1}], "minAvailable": 1},
            "'minAvailable' < 0 in task: a, job: j;",
        ),
        ({"tasks": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 1}]}, "duplicated task name a;"),
        ({"tasks": [{"name": "A", "replicas": 1}]}, "a lowercase RFC 1123 label must consist of"),
    ],
)
def test_a_job_is_refused_in_volcano_s_words(changes: Json, message: str) -> None:
    assert message in admission.job_refusal(_submitted(**changes), QUEUES, {})


def test_a_name_is_refused_if_it_is_too_long_for_a_pod_s_name() -> None:
    # A pod's name adds "-default0-0", 11 characters, to the Job's, and can have 63.
    assert admission.job_refusal(_submitted("j" * 52), QUEUES, {}) == ""
    refusal = admission.job_refusal(_submitted("j" * 53), QUEUES, {})
    assert refusal == (
        f"create pod with name {'j' * 53}-default0-0 validate failed [name part must be no more than 63 characters];"
    )
    assert "create job with name" in admission.job_refusal(_submitted("j" * 64), QUEUES, {})


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([{"event": "PodFailed", "exitCode": 1, "action": "AbortJob"}], "must not specify event and exitCode simultan"),
        ([{"action": "AbortJob"}], "either event and exitCode should be specified"),
        ([{"exitCode": 0, "action": "AbortJob"}], "0 is not a valid error code"),
        ([{"exitCode": 1, "action": "AbortJob"}] * 2, "duplicate exitCode 1"),
        ([{"event": "PodFailed", "action": "AbortJob"}] * 2, "duplicate event PodFailed  across different policy"),
        ([{"event": "Failed", "action": "AbortJob"}], 'spec.policies: Invalid value: "Failed": invalid policy event'),
        ([{"event": "PodFailed", "action": "Stop"}], 'spec.policies: Invalid value: "Stop": invalid policy action'),
        ([{"events": ["*", "PodFailed"], "action": "AbortJob"}], "if there's * here, no other policy should be here"),
    ],
)
def test_policies_are_refused_in_volcano_s_words(policies: list[Json], message: str) -> None:
    refusal = admission.job_refusal(_submitted(policies=policies), QUEUES, {})
    assert refusal.startswith("1 error occurred:\n\t* ")
    assert message in refusal
    assert "valid actions are [AbortJob RestartJob" in refusal


def test_an_update_can_change_only_some_fields() -> None:
    old = _submitted()
    new = copy.deepcopy(old)
    new["spec"] |= {"minAvailable": 1, "priorityClassName": "high"}
    new["spec"]["tasks"][0] |= {"replicas": 1, "minAvailable": 1}
    assert admission.update_refusal(old, new) == ""
    assert "may not change fields" in admission.update_refusal(old, {"spec": {**old["spec"], "queue": "other"}})
    assert "add or remove tasks" in admission.update_refusal(
        old, {"spec": {**old["spec"], "minAvailable": 0, "tasks": []}}
    )


def test_a_queue_needs_a_weight_and_a_known_state() -> None:
    queue: Json = {"metadata": {"name": "q"}}
    completed = admission.defaulted_queue(queue)
    assert completed["spec"] == {"weight": 1, "reclaimable": True, "parent": "root"}
    assert admission.queue_refusal(completed) == ""
    assert "must be a positive integer" in admission.queue_refusal({"spec": {"weight": -1}})
    assert "must be in [Open Closed]" in admission.queue_refusal({"spec": {"weight": 1}, "status": {"state": "x"}})


def test_a_patch_contains_only_differences() -> None:
    before = {"spec": {"a": 1, "b": 2}}
    assert admission.patch(before, {"spec": {"a": 1, "b": 3, "c": 4}}) == [
        {"op": "add", "path": "/spec/b", "value": 3},
        {"op": "add", "path": "/spec/c", "value": 4},
    ]
    assert admission.patch({}, {"spec": {"a": 1}}) == [{"op": "add", "path": "/spec", "value": {"a": 1}}]
