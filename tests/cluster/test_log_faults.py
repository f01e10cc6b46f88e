"""A followed log on a cluster whose parts are killed and whose connections go silent, and jobs that print odd bytes.

On a separate cluster, because other tests do not expect its API server to go away. `tests/local/test_log_schedules.py`
has random faults, with a server that plays the cluster.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.terminal import REPOSITORY, Terminal, own_namespace, port_of
from tests.cluster.support.waiting import until
from tests.cluster.test_log_following import output_until, rest_of
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import Processes
from tests.local.fault_relay import Fault, FaultRelay

LINES = 20_000
ODD_IMAGE = "localhost/odd-trainer:1"
# Each value of a byte but the line end, a progress bar, escape sequences, a line of 100,000 bytes, and half a line.
ODD_C = r"""
#include <stdio.h>
int main(void) {
  for (int byte = 0; byte < 256; byte++)
    if (byte != '\n') printf("[rank 0 cpu:0 #%d] byte %c.\n", byte < '\n' ? byte + 1 : byte, byte);
  printf("[rank 0 cpu:0 #256] 10%%\r20%%\r30%%\n[rank 0 cpu:0 #257] \033]0;title\007\033c\033[2J\n");
  printf("[rank 0 cpu:0 #258] ");
  for (int i = 0; i < 100000; i++) putchar('a' + i % 26);
  printf("\n\n[node 0 #1] ended lines=\"0:258\"\nhalf");
  return 0;
}
"""


@pytest.fixture(scope="module")
def faulty_cluster(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a second cluster; use the first one only to make sure that this machine can run one."""
    with testbed.running(nodes=1) as second_cluster:
        assert cluster.kubeconfig != second_cluster.kubeconfig
        folder = tmp_path_factory.mktemp("images")
        fake_trainer.load_image(second_cluster, folder)
        second_cluster.load(images.program_image(folder, ODD_IMAGE, ODD_C))
        yield second_cluster


@pytest.fixture(scope="module")
def restarted(faulty_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Yield the programs that the tests have started again; they end before the rest of the cluster."""
    assert faulty_cluster.nodes
    processes = Processes(tmp_path_factory.mktemp("restarted"))
    yield processes
    processes.stop_all()


@pytest.fixture
def terminal(faulty_cluster: Cluster, tmp_path: Path) -> Iterator[Terminal]:
    with own_namespace(faulty_cluster) as namespace:
        yield Terminal(faulty_cluster, namespace, tmp_path, faulty_cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def kill_and_start_again(cluster: Cluster, program: str, processes: Processes) -> None:
    """Kill a program of the first node, without a chance to say goodbye, and start it again."""
    ((pid, words),) = [
        (int(path.parent.name), words)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if (words := _words(path))[0].endswith(f"/{program}") and str(cluster.folder) in " ".join(words)
    ]
    os.kill(pid, signal.SIGKILL)
    # A dying process has no command line any more, but still its port.
    until(lambda: not Path(f"/proc/{pid}").exists(), every_s=0.02)
    processes.start(f"{program}-after-{pid}", cluster.nodes[0].namespaces.inside(words))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().rstrip("\0").split("\0")
    except OSError:
        return [""]  # the process has just ended


def test_no_line_is_lost_when_connections_go_silent_before_the_end(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "silent", 5_000, 500, 20)
    until(lambda: any(pod["status"]["phase"] == "Running" for pod in terminal.pods("silent")), every_s=0.1)
    hole = Fault(6, "black hole", lasts_s=15)
    with FaultRelay(port_of(terminal.cluster), [hole], lambda: None) as relay:
        result = terminal.run(
            "logs", "silent", "-f", "--raw", "--kubeconfig", str(terminal.kubeconfig_through(relay.port))
        )
    assert result.returncode == 0, result.stderr
    assert fake_trainer.line_numbers(result.stdout) == list(range(1, 5_001))
    assert " 5,000 lines from 1 device, 0 missing" in result.stderr


def test_odd_bytes_are_the_same_as_from_kubectl(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "odd", image=ODD_IMAGE)
    terminal.run("wait", "odd")
    (pod,) = terminal.pods("odd")
    logs = [*terminal.cluster.command("logs", pod["metadata"]["name"], "--namespace", terminal.namespace)]
    expected = subprocess.run(logs, check=True, capture_output=True).stdout
    assert len(expected) > 100_000

    def shown(*words: str) -> bytes:
        command = terminal.command(["logs", "odd", *words])
        result = subprocess.run(command, cwd=REPOSITORY, env=terminal.environ, capture_output=True, check=False)
        assert (result.returncode, b"missing" in result.stderr) == (0, False), result.stderr
        return result.stdout

    # The launcher ends each line, also one that the container did not end.
    assert shown("--raw") == expected + b"\n"
    followed = subprocess.run(
        terminal.command(["logs", "odd", "-f", "--raw"]),
        cwd=REPOSITORY,
        env=terminal.environ,
        capture_output=True,
        check=False,
    )
    assert followed.stdout == expected + b"\n"
    assert b" 258 lines from 1 device, 0 missing" in followed.stderr
    lines = [json.loads(line)["line"] for line in shown("--json").splitlines()]
    assert len(lines) == expected.count(b"\n") + 1
    assert lines[0] == "byte \0."
    assert shown("--grep", "title") == b"[rank 0 cpu:0] \x1b]0;title\x07\x1bc\x1b[2J\n"


def test_a_pending_job_says_why_and_a_repeated_reason_is_one_notice(terminal: Terminal) -> None:
    """The job's controller tries a pod with a new random name after each refusal."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": terminal.namespace}}
    terminal.cluster.create({**quota, "spec": {"hard": {"pods": "0"}}})
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "waits", 100, 0, 20)
    with terminal.start("logs", "waits", "-f") as follower:
        output = output_until(follower, "exceeded quota")
        until(lambda: _refusals(terminal) >= 3)
        once = terminal.run("logs", "waits")
        terminal.cluster.kubectl("delete", "resourcequota", "none", "--namespace", terminal.namespace)
        output += rest_of(follower)
    assert (once.returncode, once.stdout) == (0, "")
    assert once.stderr.startswith("job waits: Pending: Error creating: pods ")
    assert follower.returncode == 0, output
    assert output.count("exceeded quota") == 1, output


def _refusals(terminal: Terminal) -> int:
    events = terminal.cluster.get("events", "--namespace", terminal.namespace)["items"]
    return sum(event.get("count") or 1 for event in events if event["reason"] == "FailedCreate")


def test_a_job_that_the_cluster_removes_after_its_end_is_shown_whole_or_the_loss_is_announced(
    terminal: Terminal,
) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "brief", 2_000, 0, 200, ttl_s=0)
    slow = Fault(0, "slowness", lasts_s=30, bytes_per_s=150_000)
    with FaultRelay(port_of(terminal.cluster), [slow], lambda: None) as relay:
        config = str(terminal.kubeconfig_through(relay.port))
        result = terminal.run("logs", "brief", "-f", "--raw", "--kubeconfig", config)
    numbers = fake_trainer.line_numbers(result.stdout)
    assert numbers == list(range(1, len(numbers) + 1))
    if len(numbers) == 2_000:
        assert result.returncode in (0, 4), result.stderr
    else:
        assert "may be lost: the pod was deleted" in result.stderr or result.returncode == 4, result.stderr
    status = terminal.run("status", "brief")
    assert (status.returncode, len(status.stderr.splitlines())) == (4, 1)


@pytest.mark.parametrize("program", ["kubelet", "kube-apiserver"])
def test_no_line_is_lost_when_a_part_of_the_cluster_is_killed(
    terminal: Terminal, restarted: Processes, program: str
) -> None:
    """Once while lines come, and once just before the job's end."""
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "killed", LINES, 500, 20)
    with terminal.start("logs", "killed", "-f", "--raw") as follower:
        output = output_until(follower, "#4000]")
        kill_and_start_again(terminal.cluster, program, restarted)
        output += output_until(follower, f"#{LINES - 1500}]")
        kill_and_start_again(terminal.cluster, program, restarted)
        output += rest_of(follower)
    assert follower.returncode == 0, output[-2000:]
    assert fake_trainer.line_numbers(output) == list(range(1, LINES + 1))
    assert f" {LINES:,} lines from 1 device, 0 missing" in output
    assert "lost" not in output
