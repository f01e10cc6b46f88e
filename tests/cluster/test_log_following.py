"""A log that is followed through cut connections: no line lost, no line repeated, every real loss announced."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import CUTS, LINES, BackgroundFollow
from tests.cluster.support.cutting_proxy import CuttingProxy
from tests.cluster.support.terminal import Terminal, port_of
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster


def output_until(follower: "subprocess.Popen[str]", words: str) -> str:
    """Return the follower's output up to the first line with these words."""
    assert follower.stdout is not None
    output = ""
    for line in follower.stdout:
        output += line
        if words in line:
            return output
    raise AssertionError(output)


def rest_of(follower: "subprocess.Popen[str]") -> str:
    """Return the rest of the follower's output; `communicate` would omit the lines that `output_until` has buffered."""
    assert follower.stdout is not None
    return follower.stdout.read()


def requests_for(terminal: Terminal, job: str) -> int:
    """Return how many requests for this job the API server's audit log has."""
    events = [json.loads(line) for line in (terminal.cluster.folder / "audit.log").read_text().splitlines()]
    about = {"resource": "jobs", "namespace": terminal.namespace, "name": job}
    return sum(event["verb"] == "get" and event.get("objectRef", {}).items() >= about.items() for event in events)


@pytest.fixture
def terminal(cluster: Cluster, background_follow: BackgroundFollow, namespace: str, tmp_path: Path) -> Terminal:
    """Return a terminal; `background_follow` has loaded the fake trainer's image."""
    assert background_follow.proxy.port
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_wait_and_follow_outlast_an_unavailable_server(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "long", 3_000, 200, 20)
    with CuttingProxy(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as proxy:
        config = str(terminal.kubeconfig_through(proxy.port))
        with (
            terminal.start("wait", "long", "--kubeconfig", config) as waiting,
            terminal.start("logs", "long", "-f", "--raw", "--kubeconfig", config) as follower,
        ):
            output = output_until(follower, "#100]")
            # The follower asks twice before it watches; the other requests come from `wait`.
            until(lambda: requests_for(terminal, "long") >= 4)
            with proxy.unavailable():
                output += output_until(follower, "the cluster does not answer")
                time.sleep(4)
            output += rest_of(follower)
            wait_output, _ = waiting.communicate(timeout=600)
    assert follower.returncode == 0, output
    assert output.count("the cluster does not answer") == output.count("the cluster answers again") == 1
    assert fake_trainer.line_numbers(output) == list(range(1, 3_001))
    assert " 3,000 lines from 1 device, 0 missing" in output
    assert waiting.returncode == 0, wait_output
    assert wait_output.splitlines()[-1] == "long Succeeded"


def test_a_pending_job_is_followed_again_when_the_server_returns(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "late", 100, 0, 20, node="nowhere")
    with CuttingProxy(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as proxy:
        config = str(terminal.kubeconfig_through(proxy.port))
        with terminal.start("logs", "late", "-f", "--kubeconfig", config) as follower:
            output_until(follower, "job late: Pending: 0/2 nodes are available")
            with proxy.unavailable():
                output_until(follower, "the cluster does not answer")
            output_until(follower, "the cluster answers again")
            terminal.cluster.kubectl("delete", "job", "late", "--namespace", terminal.namespace)
            output = rest_of(follower)
    assert follower.returncode == 4, output


def test_a_line_longer_than_the_runtimes_limit_is_shown_whole(terminal: Terminal) -> None:
    """A runtime such as containerd writes a line of more than 16 KiB in parts."""
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "wide", 50, 100, 100_000)
    result = terminal.run("logs", "wide", "-f", "--raw")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()[:-1]
    assert [line.partition("step ")[2] for line in lines] == ["x" * 100_000] * 50
    assert fake_trainer.line_numbers(result.stdout) == list(range(1, 51))
    assert " 50 lines from 1 device, 0 missing" in result.stderr


def test_both_attempts_of_a_retried_job_are_shown_whole(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "twice", 500, 1000, 20, 1, retries=1)
    result = terminal.run("logs", "twice", "-f", "--raw")
    assert result.returncode == 1
    assert fake_trainer.line_numbers(result.stdout) == [*range(1, 501), *range(1, 501)]
    assert " 1,000 lines from 1 device, 0 missing" in result.stderr
    assert "exit code 1" in result.stderr.splitlines()[-1]


def test_a_deleted_job_is_shown_to_its_last_line_and_then_reported_missing(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "gone", 100_000, 100, 20)
    with terminal.start("logs", "gone", "-f", "--raw") as follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if "#100]" in line)
        kubectl = terminal.cluster.kubectl
        kubectl("delete", "job", "gone", "--namespace", terminal.namespace, "--cascade=foreground")
        rest = follower.stdout.read()
    numbers = fake_trainer.line_numbers(rest)
    assert numbers == list(range(101, 101 + len(numbers)))
    assert follower.returncode == 4
    assert "there is no batch job `gone`" in rest.splitlines()[-1]


def test_no_line_is_lost_or_repeated_over_200_cuts(background_follow: BackgroundFollow) -> None:
    sys.stdout.write(f"seed {background_follow.seed}\n")
    code = background_follow.follower.wait(timeout=600)
    log = background_follow.stderr.read_text()
    assert code == 0, log[-2000:]
    assert background_follow.proxy.cuts >= CUTS
    assert fake_trainer.line_numbers(background_follow.stdout.read_text()) == list(range(1, LINES + 1))
    assert f" {LINES:,} lines from 1 device, 0 missing" in log
    assert "are lost" not in log
