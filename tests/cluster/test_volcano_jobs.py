"""The launcher's Volcano Jobs, with rank tables, on a cluster with the stand-in or the real Volcano."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support.terminal import NPU_POD, POD, SMALL, Terminal, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.npus.ranktable_writer import ranktable_writer
from tests.cluster.testbed.volcano.install import SCHEDULER, Volcano
from tests.documents import one_document
from tests.local.conftest import TrainerResult, train
from tests.npu.machine import build

pytestmark = pytest.mark.usefixtures("rank_tables")

FULL = ("--npus", "2", "--mode", "full")


@pytest.fixture(scope="module")
def rank_tables(cluster: Cluster) -> Iterator[None]:
    """Write rank tables while the tests run, as MindCluster's controller does."""
    with ranktable_writer(cluster):
        yield


@pytest.fixture
def terminal(cluster: Cluster, volcano: Volcano, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Return a terminal in a namespace with both claims where Volcano and the rank table writer act."""
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with restricted(cluster, namespace, tmp_path, digits, ["pnas.test/ranktable=true", *labels]) as user_terminal:
        yield user_terminal


def test_volcano_is_detected_and_its_jobs_get_their_rank_table(terminal: Terminal) -> None:
    result = terminal.submit("--npus", "2", "--mode", "performance", "--name", "two")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "serves Volcano (--backend volcano)" in result.stderr
    assert " lines from 2 devices, 0 missing" in result.stdout
    names = ("get", "configmaps", "--namespace", terminal.namespace, "-o", "name")
    assert "configmap/rings-config-two" in terminal.cluster.kubectl(*names).split()
    table = terminal.cluster.get("configmap", "rings-config-two", "--namespace", terminal.namespace)["data"]
    assert json.loads(table["hccl.json"])["status"] == "completed"
    listed = terminal.run("list", "--json")
    assert [job["backend"] for job in json.loads(listed.stdout)["items"]] == ["volcano"]
    assert terminal.run("delete", "two").returncode == 0
    until(lambda: "configmap/rings-config-two" not in terminal.cluster.kubectl(*names).split())


def test_a_gang_of_two_nodes_trains_as_one(terminal: Terminal) -> None:
    result = terminal.submit("--npus", "8", "--nodes", "2", "--mode", "performance", "--name", "gang", timeout_s=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "world_size=16" in result.stdout
    assert " lines from 16 devices, 0 missing" in result.stdout
    assert {pod["spec"]["nodeName"] for pod in terminal.pods("gang")} == {"node1", "node2"}


@pytest.fixture
def two_chips_each(cluster: Cluster) -> Iterator[dict[str, list[str]]]:
    """Leave two healthy chips per node, not the first ones: pods with two chips each need different nodes."""
    chips = {"node1": {4, 6}, "node2": {1, 2}}

    def allocatable() -> list[str]:
        return [node["status"]["allocatable"][RESOURCE] for node in cluster.get("nodes")["items"]]

    for node in cluster.nodes:
        node.make_unhealthy(set(range(8)) - chips[node.name])
    until(lambda: allocatable() == ["2", "2"], allocatable)
    try:
        yield {name: [str(chip) for chip in sorted(healthy)] for name, healthy in chips.items()}
    finally:
        for node in cluster.nodes:
            node.make_unhealthy(set())
        until(lambda: allocatable() == ["8", "8"], allocatable)


def test_emulated_npus_of_two_nodes_follow_their_rank_table_and_train_like_cpus(
    terminal: Terminal, two_chips_each: dict[str, list[str]], digits: Path, tmp_path: Path
) -> None:
    build()
    recipe = (*SMALL, "--mode", "full", "--epochs", "1", "--precision", "fp32", "--lr", "0.05")
    words = ("--npus", "2", "--nodes", "2", "--name", "npus", "--env", "NPU_EMULATED_LOG=/output/calls")
    result = terminal.run("submit", *NPU_POD, *recipe, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " lines from 4 devices, 0 missing" in result.stdout
    assert {line.count("device=Ascend910-emulated") for line in result.stdout.splitlines() if "] start " in line} == {1}
    assert "torch_npu=2.9.0+emulated" in result.stdout
    assert_ranks_follow_the_table(terminal, "npus", two_chips_each)
    on_cpus = (*recipe, "--device", "cpu", "--memory-format", "nchw", "--npus", "4")
    cpu_run = train(tmp_path, *on_cpus, data=digits, environ={"OMP_NUM_THREADS": "1"})
    assert cpu_run.code == 0, cpu_run.stdout
    npu_run = TrainerResult(result.returncode, result.stdout, result.stderr, terminal.output("npus"))
    assert npu_run.metrics("step") == cpu_run.metrics("step")


def assert_ranks_follow_the_table(terminal: Terminal, job: str, chips: dict[str, list[str]]) -> None:
    """Assert that every rank used its device of the table, which HCCL has read as well.

    HCCL refuses a symbolic link, and files of a mounted ConfigMap are links: the copy must be a regular file.
    """
    data = terminal.cluster.get("configmap", f"rings-config-{job}", "--namespace", terminal.namespace)["data"]
    servers = json.loads(data["hccl.json"])["server_list"]
    pods = {pod["status"]["podIP"]: pod for pod in terminal.pods(job)}
    ordered_pods = [pods[server["container_ip"]] for server in servers]
    # The pods' own order is the opposite one.
    assert [pod["metadata"]["name"] for pod in ordered_pods] == [f"{job}-worker-1", f"{job}-worker-0"]
    assert {pod["spec"]["nodeName"] for pod in ordered_pods} == chips.keys()
    calls = (terminal.output(job).parent / "calls").read_text()
    for server, pod in zip(servers, ordered_pods, strict=True):
        assert [device["device_id"] for device in server["device"]] == chips[pod["spec"]["nodeName"]]
        log = terminal.cluster.kubectl("logs", pod["metadata"]["name"], "--namespace", terminal.namespace)
        for place, device in enumerate(server["device"]):
            rank = device["rank_id"]
            assert f"[rank {rank} npu:{place} #1] " in log
            assert f"(backend=hccl, rank={rank}, device={place}, table={device['device_id']})" in calls


def test_a_deleted_pod_restarts_the_job_which_continues_bit_for_bit(terminal: Terminal) -> None:
    words = (*FULL, "--epochs", "12", "--checkpoint-every", "3", "--name", "moved")
    output = terminal.output("moved")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: any(output.glob("checkpoints/step-*")))
        delete = ("delete", "pod", "moved-worker-0", "--namespace", terminal.namespace, "--wait=false")
        terminal.cluster.kubectl(*delete)
        follower_output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, follower_output
    assert "received SIGTERM" in follower_output
    assert "resumed bit_exact=yes" in follower_output
    assert ", 0 missing" in follower_output
    assert json.loads(terminal.run("status", "moved", "--json").stdout)["status"]["phase"] == "Succeeded"


def test_a_job_that_waits_for_its_gang_gives_the_reason_and_is_cancelled(terminal: Terminal) -> None:
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


def test_a_configuration_error_of_the_trainer_is_not_retried_and_can_be_corrected(terminal: Terminal) -> None:
    result = terminal.submit("--npus", "1", "--epochs", "1", "--data-path", "/data/none", "--name", "fails")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "no such folder" in result.stderr.splitlines()[-1]
    assert "to correct an option, give it again with --resume auto" in result.stderr.splitlines()[-1]
    assert "restarting" not in result.stderr
    corrected = terminal.run("submit", "--name", "fails", "--resume", "auto", "--data-path", "/data")
    assert corrected.returncode == 0, corrected.stdout + corrected.stderr


def test_a_diverged_run_is_not_retried(terminal: Terminal) -> None:
    result = terminal.submit_diverging("diverges")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "was not finite in 5 steps in a row" in result.stderr.splitlines()[-1]
    assert "restarting" not in result.stderr


def closing(terminal: Terminal, queue: str) -> dict[str, object]:
    """Return the Command that closes a queue."""
    uid = terminal.cluster.get("queues.scheduling.volcano.sh", queue)["metadata"]["uid"]
    target = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "name": queue, "uid": uid}
    metadata = {"generateName": "close-", "namespace": terminal.namespace}
    command = {"apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command", "metadata": metadata}
    return {**command, "action": "CloseQueue", "target": target}


@pytest.fixture
def closed_queue(terminal: Terminal) -> Iterator[str]:
    """Create a queue, close it, and return its name."""
    name = f"closed-{terminal.namespace}"
    version = "scheduling.volcano.sh/v1beta1"
    metadata = {"name": name}
    terminal.cluster.create({"apiVersion": version, "kind": "Queue", "metadata": metadata, "spec": {"weight": 1}})
    try:
        terminal.cluster.create(closing(terminal, name))
        until(lambda: terminal.cluster.get("queue", name).get("status", {}).get("state") == "Closed")
        yield name
    finally:
        terminal.cluster.kubectl("delete", "queue", name)


def test_a_queue_that_takes_no_jobs_is_named_before_anything_is_created(terminal: Terminal, closed_queue: str) -> None:
    for queue in ("nowhere", closed_queue):
        result = terminal.submit("--npus", "1", "--queue", queue)
        assert (result.returncode, len(result.stderr.splitlines())) == (5, 1), result.stderr
        assert f"--queue {queue}: " in result.stderr
    objects = terminal.cluster.kubectl("get", "vcjob,configmaps", "--namespace", terminal.namespace, "-o", "name")
    assert objects.split() == ["configmap/kube-root-ca.crt"]


def test_a_scheduler_that_does_not_run_is_named(terminal: Terminal, volcano: Volcano) -> None:
    volcano.stop(SCHEDULER)
    try:
        assert terminal.submit("--npus", "1", "--mode", "performance", "--name", "idle", "--detach").returncode == 0
        until(lambda: "Volcano's scheduler has not looked at it" in terminal.run("status", "idle").stdout)
    finally:
        volcano.start(SCHEDULER)
    assert terminal.run("wait", "idle").returncode == 0


def test_the_checks_of_all_pods_make_one_report(terminal: Terminal) -> None:
    build()
    words = ("--npus", "2", "--nodes", "2", "--name", "proof", "--mode", "prove", "--checks", "rank-table,all-reduce")
    result = terminal.run("submit", *NPU_POD, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    report = one_document((terminal.output("proof") / "proof.json").read_text(), "Proof")
    outcomes = {(item["check"], item["place"]): item["outcome"]["verdict"] for item in report["results"]}
    assert outcomes == {
        (check, place.format(node=node)): "passed"
        for node in (0, 1)
        for check, place in (
            ("rank-table", "node{node}"),
            ("open", "node{node}/npu:0"),
            ("open", "node{node}/npu:1"),
            ("all-reduce", "node{node}/npu:0 node{node}/npu:1"),
        )
    }
    (record,) = (terminal.output("proof").parent / ".proofs").iterdir()
    assert record.name.startswith("Ascend910-emulated-")
    hosts = {json.loads(path.read_text())["host"] for path in record.iterdir()}
    assert hosts == set(report["hosts"].values()), "each machine's results are its own"
