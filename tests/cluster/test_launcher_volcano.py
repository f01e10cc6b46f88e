"""Volcano Jobs by the launcher, with rank tables, on a cluster whose Volcano is the stand-in or the real one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.launching import POD, SMALL, Terminal, restricted
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.ranktable_writer import ranktable_writer
from tests.cluster.testbed.volcano_install import SCHEDULER, Volcano
from tests.cluster.waiting import until

pytestmark = pytest.mark.usefixtures("rank_tables")

FULL = ("--npus", "2", "--mode", "full")


@pytest.fixture(scope="module")
def rank_tables(cluster: Cluster) -> Iterator[None]:
    """Somebody fills in rank tables, as MindCluster's controller does."""
    with ranktable_writer(cluster):
        yield


@pytest.fixture
def terminal(cluster: Cluster, volcano: Volcano, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """A namespace with both claims in which Volcano and the writer of rank tables act."""
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with restricted(cluster, namespace, tmp_path, digits, ["pnas.test/ranktable=true", *labels]) as one:
        yield one


def test_a_cluster_with_volcano_is_found_and_its_jobs_get_their_rank_table(terminal: Terminal) -> None:
    done = terminal.submit("--npus", "2", "--mode", "performance", "--name", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "serves Volcano (--backend volcano)" in done.stderr
    assert " lines from 2 devices, 0 missing" in done.stdout
    names = ("get", "configmaps", "--namespace", terminal.namespace, "-o", "name")
    assert "configmap/rings-config-two" in terminal.cluster.kubectl(*names).split()
    table = terminal.cluster.get("configmap", "rings-config-two", "--namespace", terminal.namespace)["data"]
    assert json.loads(table["hccl.json"])["status"] == "completed"
    listed = terminal.run("list", "--json")
    assert [job["backend"] for job in json.loads(listed.stdout)["items"]] == ["volcano"]
    assert terminal.run("delete", "two").returncode == 0
    until(lambda: "configmap/rings-config-two" not in terminal.cluster.kubectl(*names).split())


def test_a_gang_of_two_nodes_trains_as_one(terminal: Terminal) -> None:
    done = terminal.submit("--npus", "8", "--nodes", "2", "--mode", "performance", "--name", "gang", timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "world_size=16" in done.stdout
    assert " lines from 16 devices, 0 missing" in done.stdout
    assert {pod["spec"]["nodeName"] for pod in terminal.pods("gang")} == {"node1", "node2"}


def test_a_pod_that_is_deleted_restarts_the_job_which_goes_on_bit_for_bit(terminal: Terminal) -> None:
    words = (*FULL, "--epochs", "12", "--checkpoint-every", "3", "--name", "moved")
    output = terminal.output("moved")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: any(output.glob("checkpoints/step-*")))
        delete = ("delete", "pod", "moved-worker-0", "--namespace", terminal.namespace, "--wait=false")
        terminal.cluster.kubectl(*delete)
        said, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, said
    assert "received SIGTERM" in said
    assert "resumed bit_exact=yes" in said
    assert ", 0 missing" in said
    assert json.loads(terminal.run("status", "moved", "--json").stdout)["status"]["phase"] == "Succeeded"


def test_a_job_that_waits_for_its_gang_says_so_and_is_cancelled(terminal: Terminal) -> None:
    words = ("--npus", "8", "--nodes", "3", "--mode", "full", "--name", "waits")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        assert follower.stdout is not None
        line = next(line for line in follower.stdout if line.startswith("job waits: Pending: "))
        cancelled = terminal.run("cancel", "waits")
        rest = follower.stdout.read()
    assert "queued" in line or "unschedulable" in line
    assert cancelled.returncode == 0, cancelled.stderr
    assert "waits Cancelled" in cancelled.stdout
    assert follower.returncode == 125, rest


def test_a_mistake_of_the_trainer_is_not_tried_again(terminal: Terminal) -> None:
    done = terminal.submit("--npus", "1", "--data-path", "/data/none", "--name", "fails")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no such folder" in done.stderr.splitlines()[-1]
    assert "restarting" not in done.stderr


@pytest.fixture
def closed(terminal: Terminal) -> Iterator[str]:
    """A queue that takes no jobs any more."""
    name = f"closed-{terminal.namespace}"
    version = "scheduling.volcano.sh/v1beta1"
    metadata = {"name": name}
    terminal.cluster.create({"apiVersion": version, "kind": "Queue", "metadata": metadata, "spec": {"weight": 1}})
    try:
        uid = terminal.cluster.get("queue", name)["metadata"]["uid"]
        command = {
            "apiVersion": "bus.volcano.sh/v1alpha1",
            "kind": "Command",
            "metadata": {"generateName": "close-", "namespace": terminal.namespace},
            "action": "CloseQueue",
            "target": {"apiVersion": version, "kind": "Queue", "name": name, "uid": uid},
        }
        terminal.cluster.create(command)
        until(lambda: terminal.cluster.get("queue", name).get("status", {}).get("state") == "Closed")
        yield name
    finally:
        terminal.cluster.kubectl("delete", "queue", name)


def test_a_queue_that_takes_no_jobs_is_named_before_anything_is_created(terminal: Terminal, closed: str) -> None:
    for queue in ("nowhere", closed):
        done = terminal.submit("--npus", "1", "--queue", queue)
        assert (done.returncode, len(done.stderr.splitlines())) == (5, 1), done.stderr
        assert f"--queue {queue}: " in done.stderr
    left = terminal.cluster.kubectl("get", "vcjob,configmaps", "--namespace", terminal.namespace, "-o", "name")
    assert left.split() == ["configmap/kube-root-ca.crt"]


def test_a_scheduler_that_does_not_run_is_named(terminal: Terminal, volcano: Volcano) -> None:
    volcano.stop(SCHEDULER)
    try:
        assert terminal.submit("--npus", "1", "--mode", "performance", "--name", "idle", "--detach").returncode == 0
        until(lambda: "Volcano's scheduler has not looked at it" in terminal.run("status", "idle").stdout)
    finally:
        volcano.start(SCHEDULER)
    assert terminal.run("wait", "idle").returncode == 0
