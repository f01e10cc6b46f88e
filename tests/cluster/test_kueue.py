"""Kubernetes Jobs in a queue of the real Kueue: they wait, are preempted, are cancelled, and lose no step.

`PNAS_KUEUE_JOBS=10` lets ten jobs through a quota for two, with five preemptions and ten cancels; CI has a few.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from docs.manifests import ACCOUNT, FOLDER
from launcher.cluster.rbac import KUEUE_VERBS
from launcher.kinds.kueue import check_local_queue
from launcher.kube.access import ClusterAccess
from launcher.kube.api import Api, connect
from tests.cluster.support.explained_jobs import ExplainedJobs
from tests.cluster.support.terminal import POD, SMALL, Terminal, restricted
from tests.cluster.support.waiting import until
from tests.cluster.test_rights import asked, flat
from tests.cluster.testbed.applying import apply
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.kueue import LABEL, Kueue, kueue
from tests.documents import one_document

JOBS = int(os.environ.get("PNAS_KUEUE_JOBS", "2"))
AT_ONCE = max(1, JOBS // 5)
PREEMPTIONS = max(1, JOBS // 2)
STEPS_PER_EPOCH = 4
# No job ends before its cancel, on a busy machine too.
EPOCHS = 10_000
QUEUE = "team-a"
URGENT = "pnas-test-urgent"
NPU = "huawei.com/Ascend910"
ROOM = {"cpu": "1k", "memory": "1Ti"}


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Kueue]:
    """Run Kueue for the tests of this module."""
    meta = {"name": URGENT}
    with kueue(cluster) as running:
        apply(cluster, {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": meta, "value": 1000})
        yield running


@pytest.fixture
def terminal(cluster: Cluster, installed: Kueue, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Return a terminal of a user who has only the Roles, in a namespace with a queue."""
    kubectl = cluster.kubectl
    with restricted(cluster, namespace, tmp_path, digits, (f"{LABEL}=true",), PNAS_BACKEND="batch") as admin:
        for name in ("rbac.yaml", "rbac-kueue.yaml"):
            kubectl("apply", "--namespace", namespace, "--filename", str(FOLDER / name))
        token = kubectl("create", "token", ACCOUNT, "--namespace", namespace, "--duration=12h").strip()
        config = admin.kubeconfig_with("launcher", lambda config: config["users"][0].update(user={"token": token}))
        installed.make_queue(namespace, QUEUE, {NPU: str(AT_ONCE), **ROOM})
        yield Terminal(cluster, namespace, tmp_path, config, admin.variables)
    kubectl("delete", "clusterqueues.kueue.x-k8s.io", namespace, "--wait=false")


@dataclass(frozen=True)
class _Job:
    """A job on the cluster, and its output folder on this machine."""

    terminal: Terminal
    name: str

    @property
    def words(self) -> tuple[str, ...]:
        """The options with which it is submitted."""
        own = ("--npus", "1", "--mode", "full", "--epochs", str(EPOCHS), "--lr", "0.001")
        return (*own, "--queue", QUEUE, "--name", self.name)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """The epoch and the number of each step in its metrics."""
        path = self.terminal.output(self.name) / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(row) for row in rows if row.endswith("}")]
        return [(record["epoch"], record["step"]) for record in records if record["kind"] == "step"]

    @property
    def object(self) -> Any:
        """The Kubernetes Job."""
        return self.terminal.cluster.get("job", self.name, "--namespace", self.terminal.namespace)

    @property
    def status(self) -> Any:
        """What `status --json` says."""
        shown = self.terminal.run("status", self.name, "--json")
        assert shown.returncode == 0, shown.stderr
        return one_document(shown.stdout, "Job")["status"]

    def start(self) -> None:
        """Submit it and leave it alone."""
        submitted = self.terminal.submit(*self.words, "--detach")
        assert submitted.returncode == 0, submitted.stderr

    def trains(self) -> None:
        """Wait until it has made a further step."""
        before = len(self.steps)
        until(lambda: len(self.steps) > before, lambda: f"{self.name} makes no step: {self.status}")

    def cancel(self) -> None:
        """Cancel it."""
        cancelled = self.terminal.run("cancel", self.name)
        assert (cancelled.returncode, cancelled.stdout) == (0, f"{self.name} Cancelled: stopped; it can go on\n")

    def stays_cancelled(self, installed: Kueue) -> bool:
        """Return whether it is suspended without pods, and Kueue does not start it."""
        workload = installed.workload(self.terminal.namespace, self.name)
        suspended = self.object["spec"]["suspend"] and not self.terminal.pods(self.name)
        return suspended and workload["spec"]["active"] is False

    def finish(self) -> None:
        """Continue it after a cancel for the rest of its epoch and one more; check that it took each step once."""
        steps = self.steps
        epochs = steps[-1][0] + 2 if steps else 2
        resumed = self.terminal.run("submit", "--name", self.name, "--resume", "auto", "--epochs", str(epochs))
        assert resumed.returncode == 0, resumed.stderr
        assert self.steps == [(epoch, step) for epoch in range(epochs) for step in range(STEPS_PER_EPOCH)], self.name


def _start_urgent(terminal: Terminal, name: str) -> None:
    """Start a job of a higher priority that takes the whole quota.

    It asks for more CPUs than a node has, so that it takes no time of a processor.
    """
    words = ("--npus", str(AT_ONCE), "--mode", "performance", "--cpu", "500", "--queue", QUEUE, "--name", name)
    submitted = terminal.submit(*words, "--priority-class", URGENT, "--detach")
    assert submitted.returncode == 0, submitted.stderr
    urgent = _Job(terminal, name)
    until(lambda: not urgent.object["spec"]["suspend"], lambda: urgent.status)


def test_queued_jobs_lose_no_step_and_cancelled_ones_stay_cancelled(terminal: Terminal, installed: Kueue) -> None:
    preempted = [_Job(terminal, f"preempted-{number}") for number in range(AT_ONCE)]
    started = [_Job(terminal, f"started-{number}") for number in range(JOBS // 2 - AT_ONCE)]
    waiting = [_Job(terminal, f"waiting-{number}") for number in range(JOBS - JOBS // 2)]
    jobs = preempted + started + waiting
    cluster, names = terminal.cluster, ("--namespace", terminal.namespace)
    _start_urgent(terminal, "urgent")
    with ThreadPoolExecutor(1) as reader, terminal.start("submit", *POD, *SMALL, *jobs[0].words) as follower:
        # A launcher that cannot write reads no log, and a preempted pod's log is soon gone.
        output = reader.submit(follower.communicate)
        until(lambda: jobs[0].name in cluster.kubectl("get", "jobs", *names))
        for job in jobs[1:]:
            job.start()
        _check_the_queue_is_told(terminal, jobs[-1])
        for job in waiting:
            job.cancel()
        cluster.kubectl("delete", "job", "urgent", *names)
        for number in range(PREEMPTIONS):
            for job in preempted:
                job.trains()
            _start_urgent(terminal, f"urgent-{number}")
            cluster.kubectl("delete", "job", f"urgent-{number}", *names)
        preemptions = [installed.preemptions(terminal.namespace, job.name) for job in jobs]
        assert preemptions == [PREEMPTIONS] * AT_ONCE + [0] * (JOBS - AT_ONCE)
        for job in preempted + started:
            job.trains()
            assert job.object["status"].get("failed", 0) == 0, "no retry is used up"
            job.cancel()
        said, _ = output.result()
    assert follower.returncode == 125, said
    for words in ("received SIGTERM", "resumed bit_exact=yes", f": Pending: queued in {QUEUE}, 1 of ", ", 0 missing"):
        assert words in said
    assert {status["phase"] for status in _listed(terminal).values()} == {"Cancelled"}
    for job in reversed(jobs):
        # Each one passes through a queue in which the others would be next.
        assert job.stays_cancelled(installed), job.status
        job.finish()
    user = f"system:serviceaccount:{terminal.namespace}:{ACCOUNT}"
    of_kueue = {request for request in asked(cluster, user) if request[1] == "kueue.x-k8s.io"}
    assert of_kueue == flat(KUEUE_VERBS), "the Role has exactly the rights that are used"


def _check_the_queue_is_told(terminal: Terminal, last: _Job) -> None:
    """Check that a job that waits tells why, and its place in the queue."""
    place = f"queued in {QUEUE}, {JOBS} of {JOBS}: "
    reason = f"insufficient unused quota for {NPU} in flavor any-node, 1 more needed"
    until(lambda: reason in str(_listed(terminal)[last.name]["reason"]), lambda: last.status)
    status = last.status
    assert (status["phase"], status["reason"].startswith(place)) == ("Pending", True), status


def _listed(terminal: Terminal) -> dict[str, Any]:
    """Return what `list --json` says of each job."""
    jobs = one_document(terminal.run("list", "--json").stdout, "JobList")["items"]
    return {job["name"]: job["status"] for job in jobs}


def test_the_state_of_a_queue_is_known_before_a_job_waits_in_it(terminal: Terminal) -> None:
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    doctor = terminal.run("doctor", *POD, *SMALL, "--npus", "1", "--queue", QUEUE)
    lines = {line.split()[1]: line for line in doctor.stdout.splitlines()}
    assert lines["queue"].startswith("ok "), doctor.stdout
    assert f"its ClusterQueue is {namespace}" in lines["queue"]
    assert lines["rights"].startswith("ok "), doctor.stdout
    refused = terminal.submit("--npus", "1", "--queue", "none", "--detach")
    assert refused.returncode == 5
    assert refused.stderr.splitlines()[-1].startswith("error: --queue none: there is no such queue in namespace ")
    for queue, job, text in (
        (QUEUE, "oversized", f"queued in {QUEUE}, 1 of 1: couldn't assign flavors to pod set main: insufficient quota"),
        ("none", "strayed", "queued in none, 1 of 1: LocalQueue none doesn't exist"),
    ):
        jobs = ExplainedJobs(terminal, "--queue", queue, backends=["batch"])
        jobs.create(job, npus=AT_ONCE + 1)
        jobs.expect({job: ("queue", text)})
    api = connect(ClusterAccess(kubeconfig=terminal.kubeconfig, namespace=namespace))
    for kind, name, words in (
        ("localqueue", QUEUE, "it is stopped (Hold): a job waits"),
        ("clusterqueue", namespace, f"its ClusterQueue {namespace} starts no jobs: "),
    ):
        for policy in ("Hold", "None"):
            patch = ("--type=merge", "--patch", json.dumps({"spec": {"stopPolicy": policy}}))
            kubectl("patch", f"{kind}s.kueue.x-k8s.io", name, "--namespace", namespace, *patch)
            expected = words if policy == "Hold" else "Kueue's, open"
            until(partial(_queue_is, api, expected), lambda: check_local_queue(api, QUEUE))
            if policy == "Hold":
                causes = json.loads(terminal.run("explain", "oversized", "--json").stdout)["causes"]
                assert {cause["rule"] for cause in causes} == {"queue"}
                assert any(words in cause["text"] for cause in causes), causes


def _queue_is(api: Api, words: str) -> bool:
    return words in check_local_queue(api, QUEUE).text
