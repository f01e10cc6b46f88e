"""What may become of a job on a cluster: every mode, two at once, a container that is killed, one that is too large."""

import json
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.npus.pod_annotations import REAL


def test_a_model_is_trained_then_finetuned_then_evaluated(terminal: Terminal) -> None:
    """`performance` is the mode of the jobs in test_launcher_batch.py; the quickstart has eight NPUs."""
    trained = terminal.submit("--npus", "1", "--mode", "full", "--epochs", "1", "--name", "first")
    assert trained.returncode == 0, trained.stderr
    weights = "/output/first/checkpoints/best.safetensors"
    tuned = terminal.submit(
        "--npus", "1", "--mode", "finetune", "--epochs", "1", "--weights", weights, "--name", "more"
    )
    assert tuned.returncode == 0, tuned.stderr
    weights = "/output/more/checkpoints/best.safetensors"
    words = ("--npus", "2", "--mode", "eval", "--weights", weights, "--name", "judged")
    judged = terminal.submit(*words, timeout_s=500)
    assert judged.returncode == 0, judged.stderr
    assert "top-1" in judged.stdout
    assert " lines from 2 devices, 0 missing" in judged.stdout
    (pod,) = terminal.pods("judged")
    assert len(pod["metadata"]["annotations"][REAL].split(",")) == 2


def test_two_jobs_at_once_share_a_cluster_and_nothing_else(terminal: Terminal) -> None:
    names = ("left", "right")
    words = ("--npus", "2", "--mode", "performance")
    with ExitStack() as stack:
        followers = [
            stack.enter_context(terminal.start("submit", *POD, *SMALL, *words, "--name", name)) for name in names
        ]
        said = [follower.communicate(timeout=600)[0] for follower in followers]
    assert [follower.returncode for follower in followers] == [0, 0], said
    assert all(" lines from 2 devices, 0 missing" in one for one in said)
    pods = [pod for name in names for pod in terminal.pods(name)]
    devices = [
        (pod["spec"]["nodeName"], device) for pod in pods for device in pod["metadata"]["annotations"][REAL].split(",")
    ]
    assert len(set(devices)) == 4, devices


def test_a_container_that_is_killed_once_is_tried_again_and_goes_on(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "12", "--checkpoint-every", "3", "--name", "struck")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: any(terminal.output("struck").glob("checkpoints/step-*")))
        (pod,) = terminal.pods("struck")
        for process in processes_of(pod["metadata"]["uid"]):
            # The first takes the others along.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        said, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, said
    assert "job struck: Pending: to be tried again" in said
    assert "resumed bit_exact=yes" in said
    assert len(terminal.pods("struck")) == 2
    assert json.loads(terminal.run("status", "struck", "--json").stdout)["status"]["restarts"] == 1


def processes_of(pod_uid: str) -> list[int]:
    """Those of a pod's trainer, as this machine counts them."""
    found = []
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            ours = (
                pod_uid in group.read_text().replace("_", "-") and b"trainer" in group.with_name("cmdline").read_bytes()
            )
        except OSError:
            continue  # it has just ended
        if ours:
            found.append(int(group.parent.name))
    assert found
    return found


def test_a_job_that_wants_more_memory_than_it_has_says_so(terminal: Terminal) -> None:
    done = terminal.submit(
        "--npus", "1", "--mode", "performance", "--memory", "150Mi", "--retries", "0", "--name", "big"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert "rank 0 on cpu:0: killed by SIGKILL (out of memory?)" in last
    assert "(OOMKilled)" in last


def prepared(terminal: Terminal, script: str) -> Path:
    """An overlay with a container that comes before the trainer's."""
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "prepare", "image": images.TRAINER, "imagePullPolicy": "Never", "securityContext": safe}
    path = terminal.home / "overlay.yaml"
    path.write_text(json.dumps({"spec": {"initContainers": [{**container, "command": ["sh", "-c", script]}]}}))
    return path


def test_what_an_overlay_brings_is_heard_too_and_is_the_cause_where_it_fails(terminal: Terminal) -> None:
    overlay = prepared(terminal, "echo no data; echo '[rank 0 cpu:0 #9] not mine'; exit 3")
    done = terminal.submit("--npus", "1", "--retries", "0", "--overlay", str(overlay), "--name", "unready")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == ["[prepare] no data", "[prepare] [rank 0 cpu:0 #9] not mine"]
    assert "container prepare: exit code 3" in done.stderr.splitlines()[-1]
    assert " lines from 0 devices, 0 missing" in done.stdout


def test_a_job_goes_when_its_time_is_over_and_leaves_its_output(terminal: Terminal) -> None:
    overlay = prepared(terminal, "echo ready")
    words = ("--npus", "1", "--mode", "performance", "--ttl", "3s", "--overlay", str(overlay), "--name", "brief")
    done = terminal.submit(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[prepare] ready"
    assert " lines from 1 device, 0 missing" in done.stdout
    until(lambda: terminal.run("status", "brief").returncode == 4)
    until(lambda: not terminal.pods("brief"))
    assert (terminal.output("brief") / "config.yaml").is_file()


def test_a_job_whose_deadline_is_over_is_ended(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "1000", "--deadline", "8s", "--name", "slow")
    done = terminal.submit(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DeadlineExceeded" in done.stderr.splitlines()[-1]
