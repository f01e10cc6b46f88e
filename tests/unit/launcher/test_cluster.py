"""A job's state on a cluster, if several objects give a reason or an object is deleted."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launcher.cluster.job_watch import JobWatch
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.saved_attempt import SavedAttempt
from launcher.cluster.submitter import ClusterSubmitter
from launcher.errors import ApiError
from launcher.jobs import JobRef, JobState, Phase
from launcher.kinds import kind_named
from launcher.kinds.batch import BATCH_JOBS
from launcher.kube.api import Api, Json
from launcher.kube.resources import EVENTS, PODS, Resource
from launcher.manifests.pod_spec import make_pod_spec
from launcher.settings.layers import resolve_settings

FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"} | {
    "lastTransitionTime": "2026-11-26T08:01:00Z"
}
JOB = {"metadata": {"name": "pair", "uid": "j"}, "spec": {"completions": 2}, "status": {"conditions": [FAILED]}}


def failed(name: str, node: str, at: str, code: int = 1) -> Json:
    """Return a failed pod."""
    state = {"terminated": {"exitCode": code, "finishedAt": f"2026-11-26T08:00:{at}Z"}}
    status = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}]}
    return {"metadata": {"name": name}, "spec": {"hostname": node}, "status": status}


class DeletedJob:
    """An API server with one job, which it deletes when `delete` is set."""

    origin, namespace = "here", "training"

    def __init__(self, job: Json) -> None:
        self.delete = threading.Event()
        self._job = job

    def list(self, resource: Resource, **_: str) -> tuple[list[Json], str]:
        return [self._job] if resource == kind_named("batch").resource else [], "1"

    @contextmanager
    def stream(self, path: str, _query: dict[str, str], **_: object) -> Iterator[Iterator[bytes]]:
        yield self._deletion() if path.endswith("/jobs") else iter(())

    def _deletion(self) -> Iterator[bytes]:
        self.delete.wait(60)
        meta = {**self._job["metadata"], "resourceVersion": "2"}
        yield json.dumps({"type": "DELETED", "object": {**self._job, "metadata": meta}}).encode()


class Server:
    """An API server that has pods with the ends of their logs."""

    origin, namespace = "here", "training"

    def __init__(self, *pods: tuple[Json, str]) -> None:
        self._pods = pods

    def list(self, _kind: Resource, **_: str) -> tuple[list[Json], str]:
        return [pod for pod, _ in self._pods], "1"

    def read(self, path: str, _query: dict[str, str], *, action: str) -> bytes:
        assert action
        (text,) = (text for pod, text in self._pods if f"/{pod['metadata']['name']}/" in path)
        return f"[node 0 #1] {text}\n".encode() if text else b""


def reason(*pods: tuple[Json, str]) -> str:
    """Return the reason why the job of these pods failed."""
    jobs = ClusterJobs(kind_named("batch"), cast("Api", Server(*pods)))
    return jobs.state_of(JOB, [pod for pod, _ in pods]).reason


LOST = 'failed rank=0 device=npu:0 cause="Connection closed by peer"'
MEMORY = 'failed rank=1 device=npu:0 cause="out of memory"'


def test_the_cause_comes_from_the_pod_that_ended_first_and_not_from_pods_that_lost_a_peer() -> None:
    why = reason((failed("pair-0-a", "pair-0", "09"), LOST), (failed("pair-1-b", "pair-1", "05"), MEMORY))
    assert why == "rank 1 on npu:0: out of memory (pod pair-1-b: exit code 1)"


def test_if_the_first_pod_logs_no_cause_its_exit_code_is_shown_with_another_pods_cause() -> None:
    why = reason((failed("pair-0-a", "pair-0", "09"), LOST), (failed("pair-1-b", "pair-1", "05", 137), ""))
    assert why == "rank 0 on npu:0: Connection closed by peer (pod pair-1-b: exit code 137)"


def test_the_cause_comes_from_the_last_of_several_attempts() -> None:
    earlier = [(failed("pair-0-a", "pair-0", "04"), LOST), (failed("pair-1-b", "pair-1", "03"), "error disk full")]
    last = [(failed("pair-0-c", "pair-0", "29"), LOST), (failed("pair-1-d", "pair-1", "25"), MEMORY)]
    assert reason(*earlier, *last) == "rank 1 on npu:0: out of memory (pod pair-1-d: exit code 1)"


@pytest.mark.parametrize("ended", [True, False])
def test_a_job_that_is_deleted_after_its_end_keeps_its_outcome(ended: bool) -> None:
    server = DeletedJob({**JOB, "status": JOB["status"] if ended else {}})
    state = JobState(JobRef("batch", "pair"), Phase.FAILED)
    with closing(JobWatch(cast("Api", server), kind_named("batch"), "pair", lambda _job, _pods: state)) as watch:
        assert watch.outcome() == (state if ended else None)
        server.delete.set()
        while watch.job is not None:
            watch.changed.wait(10)
            watch.changed.clear()
        assert watch.outcome() == (state if ended else None)


QUOTA = 'Pending: Error creating: pods "pair-{}" is forbidden: exceeded quota: q'


def test_a_reason_that_differs_only_in_a_random_pod_name_is_the_same_reason() -> None:
    server = DeletedJob(JOB)
    state = JobState(JobRef("batch", "pair"), Phase.PENDING)
    with closing(JobWatch(cast("Api", server), kind_named("batch"), "pair", lambda _job, _pods: state)) as watch:
        combined = "Pending: (combined from similar events): " + QUOTA.format("x2x4z").removeprefix("Pending: ")
        keys = {watch.status_key(text) for text in (QUOTA.format("hvf52"), QUOTA.format("9bq8z"), combined)}
        assert len(keys) == 1
        assert watch.status_key(QUOTA.format("hvf52")) != watch.status_key(QUOTA.format("hvf52") + "2")
        server.delete.set()


def test_a_continued_job_keeps_the_content_of_its_overlay(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("spec: {hostNetwork: true}\n")
    kind = kind_named("batch")
    first = make_pod_spec(resolve_settings({"image": "r/p:1", "name": "x", "overlay": overlay}, None, {}), kind)
    overlay.unlink()
    last = SavedAttempt(1, 1, first.model_dump(mode="json"))
    jobs = SimpleNamespace(name="batch", kind=kind, find=lambda _: {}, attempt_to_continue=lambda _name, _job: last)
    flags = {"name": "x", "resume": "auto"}
    name, earlier = ClusterSubmitter(cast("ClusterJobs", jobs)).earlier(resolve_settings(flags, None, {}))
    second = make_pod_spec(resolve_settings({**flags, "name": name}, None, {}, earlier=earlier), kind)
    assert second.overlay == {"spec": {"hostNetwork": True}}
    overlay.write_text("spec: {}\n")
    third = make_pod_spec(resolve_settings({**flags, "overlay": overlay}, None, {}, earlier=earlier), kind)
    assert third.overlay == {"spec": {}}


PENDING = {"phase": "Pending"}
COMPLETE = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-26T08:01:00Z"}


class OnlyJobs:
    """An API server for a user who has rights on jobs and on nothing else."""

    origin, namespace = "here", "training"

    def __init__(self, **status: object) -> None:
        self._job: Json = {"metadata": {"name": "a", "uid": "j"}, "spec": {}, "status": status}

    def find(self, resource: Resource, name: str) -> Json:
        self._check_right(resource)
        return {**self._job, "metadata": {**self._job["metadata"], "name": name}}

    def list(self, resource: Resource, **_: str) -> tuple[list[Json], str]:
        self._check_right(resource)
        return [self._job], "1"

    @staticmethod
    def _check_right(resource: Resource) -> None:
        if resource != BATCH_JOBS:
            raise ApiError(f"you have no right to read {resource}", status=403, of_rights=True)


@pytest.mark.parametrize(
    ("status", "phase", "reason"),
    [
        ({}, Phase.PENDING, "you have no right to see its pods: you have no right to read pods"),
        ({"active": 1, "ready": 1}, Phase.RUNNING, "you have no right to see its pods: you have no right to read pods"),
        ({"conditions": [FAILED]}, Phase.FAILED, "BackoffLimitExceeded"),
        ({"conditions": [COMPLETE]}, Phase.SUCCEEDED, ""),
    ],
)
def test_a_user_with_rights_on_jobs_only_sees_their_phases(status: Json, phase: Phase, reason: str) -> None:
    jobs = ClusterJobs(kind_named("batch"), cast("Api", OnlyJobs(**status)))
    state = jobs.get(JobRef("batch", "a"))
    assert (state.phase, state.reason) == (phase, reason)
    assert [listed.phase for listed, _ in jobs.list()] == [phase]


class RecordingServer:
    """An API server with a gang that waits for a volume; it records each request."""

    origin, namespace = "here", "training"

    def __init__(self) -> None:
        self.requests: list[str] = []
        about = {"kind": "Pod", "name": "pair-worker-0", "uid": "p0"}
        mount = {"reason": "FailedMount", "message": "volume is missing", "involvedObject": about}
        meta = {"creationTimestamp": "2026-11-26T08:00:05Z"}
        pods = [
            {"metadata": {"name": f"pair-worker-{n}", "uid": f"p{n}"}, "spec": {"nodeName": "n"}, "status": PENDING}
            for n in range(2)
        ]
        self._lists: dict[Resource, list[Json]] = {PODS: pods, EVENTS: [{**mount, "metadata": meta}]}

    def find(self, resource: Resource, name: str) -> Json:
        self.requests.append(f"get {resource.plural}/{name}")
        return {"metadata": {"name": name, "uid": "j"}, "spec": {}, "status": {"state": {"phase": "Pending"}}}

    def list(self, resource: Resource, **choice: Any) -> tuple[list[Json], str]:
        selectors = "".join(f" {name}={choice[name]}" for name in ("labels", "fields") if choice.get(name))
        self.requests.append(f"list {resource.plural}{selectors}")
        return list(filter(None, map(choice.get("part") or (lambda item: item), self._lists[resource]))), "1"

    def read(self, path: str, _query: dict[str, str], *, action: str) -> bytes:
        self.requests.append(f"{action} {path}")
        return b""


def test_the_status_of_a_waiting_job_asks_for_each_collection_once() -> None:
    server = RecordingServer()
    jobs = ClusterJobs(kind_named("volcano"), cast("Api", server))
    state, events = jobs.get_with_events(JobRef("volcano", "pair"))
    jobs.progress(state)
    assert (state.phase, state.reason) == (Phase.PENDING, "volume is missing (2 pods wait)")
    assert [event.text for event in events] == ["Pod pair-worker-0: FailedMount: volume is missing"]
    logs = [f"get pods/log /api/v1/namespaces/training/pods/pair-worker-{n}/log" for n in range(2)]
    pods = "list pods labels=volcano.sh/job-name=pair"
    assert server.requests == ["get jobs/pair", pods, "get podgroups/pair-j", "list events", *logs]
