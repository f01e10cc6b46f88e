"""Outcomes of a job on a cluster: each mode, two jobs at once, a killed container, too little memory."""

import json
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.npus.pod_annotations import REAL


def test_a_model_is_trained_then_finetuned_then_evaluated(terminal: Terminal) -> None:
    """The jobs of test_batch_jobs.py use the mode `performance`; the quickstart uses eight NPUs."""
    trained = terminal.submit("--npus", "1", "--mode", "full", "--epochs", "1", "--name", "first")
    assert trained.returncode == 0, trained.stderr
    weights = "/output/first/checkpoints/best.safetensors"
    tuned = terminal.submit(
        "--npus", "1", "--mode", "finetune", "--epochs", "1", "--weights", weights, "--name", "more"
    )
    assert tuned.returncode == 0, tuned.stderr
    weights = "/output/more/checkpoints/best.safetensors"
    words = ("--npus", "2", "--mode", "eval", "--weights", weights, "--name", "evaluated")
    evaluated = terminal.submit(*words, timeout_s=500)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "top-1" in evaluated.stdout
    assert " lines from 2 devices, 0 missing" in evaluated.stdout
    (pod,) = terminal.pods("evaluated")
    assert len(pod["metadata"]["annotations"][REAL].split(",")) == 2


def test_two_jobs_at_once_share_a_cluster_and_nothing_else(terminal: Terminal) -> None:
    names = ("left", "right")
    words = ("--npus", "2", "--mode", "performance")
    with ExitStack() as stack:
        followers = [
            stack.enter_context(terminal.start("submit", *POD, *SMALL, *words, "--name", name)) for name in names
        ]
        output = [follower.communicate(timeout=600)[0] for follower in followers]
    assert [follower.returncode for follower in followers] == [0, 0], output
    assert all(" lines from 2 devices, 0 missing" in output_of_job for output_of_job in output)
    pods = [pod for name in names for pod in terminal.pods(name)]
    devices = [
        (pod["spec"]["nodeName"], device) for pod in pods for device in pod["metadata"]["annotations"][REAL].split(",")
    ]
    assert len(set(devices)) == 4, devices


def test_a_container_that_is_killed_once_is_retried_and_continues(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "12", "--checkpoint-every", "3", "--name", "struck")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: any(terminal.output("struck").glob("checkpoints/step-*")))
        (pod,) = terminal.pods("struck")
        for process in processes_of(pod["metadata"]["uid"]):
            # The first process ends the others, too.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, output
    assert "job struck: Pending: waiting for the next try" in output
    assert "resumed bit_exact=yes" in output
    assert len(terminal.pods("struck")) == 2
    assert json.loads(terminal.run("status", "struck", "--json").stdout)["status"]["restarts"] == 1


def processes_of(pod_uid: str) -> list[int]:
    """Return the process ids of a pod's trainer on this machine."""
    processes = []
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            is_trainer = (
                pod_uid in group.read_text().replace("_", "-") and b"trainer" in group.with_name("cmdline").read_bytes()
            )
        except OSError:
            continue  # the process has just ended
        if is_trainer:
            processes.append(int(group.parent.name))
    assert processes
    return processes


def test_a_job_that_runs_out_of_memory_names_the_cause(terminal: Terminal) -> None:
    result = terminal.submit(
        "--npus", "1", "--mode", "performance", "--memory", "150Mi", "--retries", "0", "--name", "big"
    )
    assert result.returncode == 1, result.stdout + result.stderr
    last = result.stderr.splitlines()[-1]
    assert "rank 0 on cpu:0: killed by SIGKILL (out of memory?)" in last
    assert "(OOMKilled)" in last


def overlay_with_init_container(terminal: Terminal, script: str) -> Path:
    """Write an overlay with a container that runs before the trainer's."""
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "prepare", "image": images.TRAINER, "imagePullPolicy": "Never", "securityContext": safe}
    path = terminal.home / "overlay.yaml"
    path.write_text(json.dumps({"spec": {"initContainers": [{**container, "command": ["sh", "-c", script]}]}}))
    return path


def test_an_overlays_container_is_logged_and_named_as_the_cause_if_it_fails(terminal: Terminal) -> None:
    overlay = overlay_with_init_container(terminal, "echo no data; echo '[rank 0 cpu:0 #9] not mine'; exit 3")
    result = terminal.submit("--npus", "1", "--retries", "0", "--overlay", str(overlay), "--name", "unready")
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.splitlines()[:2] == ["[prepare] no data", "[prepare] [rank 0 cpu:0 #9] not mine"]
    assert "container prepare: exit code 3" in result.stderr.splitlines()[-1]
    assert " lines from 0 devices, 0 missing" in result.stdout


def test_a_job_is_deleted_after_its_ttl_and_its_output_stays(terminal: Terminal) -> None:
    overlay = overlay_with_init_container(terminal, "echo ready")
    words = ("--npus", "1", "--mode", "performance", "--ttl", "3s", "--overlay", str(overlay), "--name", "brief")
    result = terminal.submit(*words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "[prepare] ready"
    assert " lines from 1 device, 0 missing" in result.stdout
    until(lambda: terminal.run("status", "brief").returncode == 4)
    until(lambda: not terminal.pods("brief"))
    assert (terminal.output("brief") / "config.yaml").is_file()


def test_a_job_past_its_deadline_is_ended(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "1000", "--lr", "0.001", "--deadline", "8s")
    result = terminal.submit(*words, "--name", "slow")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "DeadlineExceeded" in result.stderr.splitlines()[-1]


def whole_node_pod(namespace: str, node: str) -> dict[str, Any]:
    """Return a pod of high priority that needs all NPUs of a node."""
    safe = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
    }
    amounts = {RESOURCE: "8"}
    container = {
        "name": "pause",
        "image": images.PAUSE,
        "securityContext": {**safe, "seccompProfile": {"type": "RuntimeDefault"}},
        "resources": {"requests": amounts, "limits": amounts},
    }
    spec = {"priorityClassName": "pnas-test-high", "containers": [container]}
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}}
    metadata = {"name": "intruder", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec, **selector}}


def test_a_preempted_job_saves_and_goes_on_when_there_is_room_again(cluster: Cluster, terminal: Terminal) -> None:
    """The scheduler ends the pod for one of higher priority; its successor waits, and continues bit by bit."""
    node = cluster.nodes[0].name
    for name, value in (("pnas-test-low", 1), ("pnas-test-high", 1000)):
        priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
        cluster.create({**priority, "value": value})
    words = ("--npus", "1", "--mode", "full", "--epochs", "12", "--checkpoint-every", "3", "--name", "yields")
    place = ("--priority-class", "pnas-test-low", "--node-selector", f"kubernetes.io/hostname={node}")
    try:
        with terminal.start("submit", *POD, *SMALL, *words, *place) as follower:
            until(lambda: any(terminal.output("yields").glob("checkpoints/step-*")))
            cluster.create(whole_node_pod(terminal.namespace, node))
            until(lambda: [pod for pod in terminal.pods("yields") if not pod["spec"].get("nodeName")])
            causes = json.loads(terminal.run("explain", "yields", "--json").stdout)["causes"]
            assert [cause["rule"] for cause in causes][:2] == ["devices-in-use", "preempted"], causes
            assert "pod intruder uses 8" in causes[0]["text"]
            cluster.kubectl("delete", "pod", "intruder", "--namespace", terminal.namespace, "--grace-period=0")
            output, _ = follower.communicate(timeout=600)
    finally:
        cluster.kubectl("delete", "priorityclass", "pnas-test-low", "pnas-test-high")
    assert follower.returncode == 0, output
    assert "job yields: Pending: " in output
    assert "resumed bit_exact=yes" in output
    assert ", 0 missing" in output
