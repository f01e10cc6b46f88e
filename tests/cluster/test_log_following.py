"""A job's log through a connection that is cut again and again: none lost, none repeated, every real loss announced."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import CUTS, LINES, Cut
from tests.cluster.support.cutting_proxy import Cutter
from tests.cluster.support.terminal import Terminal, port_of
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster


def shown_until(follower: "subprocess.Popen[str]", words: str) -> str:
    """What it shows, up to the first line with these words."""
    assert follower.stdout is not None
    said = ""
    for line in follower.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def rest_of(follower: "subprocess.Popen[str]") -> str:
    """What it shows from there to its end; `communicate` would leave out what `shown_until` has read ahead."""
    assert follower.stdout is not None
    return follower.stdout.read()


def looks_at(terminal: Terminal, job: str) -> int:
    """How often somebody has got this job, by the API server's books."""
    asked = [json.loads(line) for line in (terminal.cluster.folder / "audit.log").read_text().splitlines()]
    about = {"resource": "jobs", "namespace": terminal.namespace, "name": job}
    return sum(one["verb"] == "get" and one.get("objectRef", {}).items() >= about.items() for one in asked)


@pytest.fixture
def terminal(cluster: Cluster, cut: Cut, namespace: str, tmp_path: Path) -> Terminal:
    """The nodes have the image since `cut` was begun."""
    assert cut.cutter.port
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_a_server_that_is_away_for_a_while_ends_nobodys_waiting(terminal: Terminal) -> None:
    fake_trainer.create(terminal.cluster, terminal.namespace, "long", 3_000, 200, 20)
    with Cutter(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as cutter:
        config = str(terminal.through(cutter.port))
        with (
            terminal.start("wait", "long", "--kubeconfig", config) as waiting,
            terminal.start("logs", "long", "-f", "--raw", "--kubeconfig", config) as follower,
        ):
            said = shown_until(follower, "#100]")
            # The follower asks twice before it watches: the others ask who waits.
            until(lambda: looks_at(terminal, "long") >= 4)
            with cutter.away():
                said += shown_until(follower, "the cluster does not answer")
                time.sleep(4)
            said += rest_of(follower)
            waited, _ = waiting.communicate(timeout=600)
    assert follower.returncode == 0, said
    assert said.count("the cluster does not answer") == said.count("the cluster answers again") == 1
    assert fake_trainer.numbers(said) == list(range(1, 3_001))
    assert " 3,000 lines from 1 device, 0 missing" in said
    assert waiting.returncode == 0, waited
    assert waited.splitlines()[-1] == "long Succeeded"


def test_a_job_that_waits_is_still_followed_when_the_server_comes_back(terminal: Terminal) -> None:
    fake_trainer.create(terminal.cluster, terminal.namespace, "late", 100, 0, 20, node="nowhere")
    with Cutter(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as cutter:
        config = str(terminal.through(cutter.port))
        with terminal.start("logs", "late", "-f", "--kubeconfig", config) as follower:
            shown_until(follower, "job late: Pending: 0/2 nodes are available")
            with cutter.away():
                shown_until(follower, "the cluster does not answer")
            shown_until(follower, "the cluster answers again")
            terminal.cluster.kubectl("delete", "job", "late", "--namespace", terminal.namespace)
            said = rest_of(follower)
    assert follower.returncode == 4, said


def test_a_line_longer_than_a_runtimes_is_shown_whole(terminal: Terminal) -> None:
    """A runtime like containerd writes a line of more than 16 KiB in parts."""
    fake_trainer.create(terminal.cluster, terminal.namespace, "wide", 50, 100, 100_000)
    done = terminal.run("logs", "wide", "-f", "--raw")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[:-1]
    assert [line.partition("step ")[2] for line in lines] == ["x" * 100_000] * 50
    assert fake_trainer.numbers(done.stdout) == list(range(1, 51))
    assert " 50 lines from 1 device, 0 missing" in done.stderr


def test_both_attempts_of_a_job_that_is_tried_again_are_shown_whole(terminal: Terminal) -> None:
    fake_trainer.create(terminal.cluster, terminal.namespace, "twice", 500, 1000, 20, 1, retries=1)
    done = terminal.run("logs", "twice", "-f", "--raw")
    assert done.returncode == 1
    assert fake_trainer.numbers(done.stdout) == [*range(1, 501), *range(1, 501)]
    assert " 1,000 lines from 1 device, 0 missing" in done.stderr
    assert "exit code 1" in done.stderr.splitlines()[-1]


def test_a_job_that_is_deleted_is_shown_to_its_last_line_and_then_missed(terminal: Terminal) -> None:
    fake_trainer.create(terminal.cluster, terminal.namespace, "gone", 100_000, 100, 20)
    with terminal.start("logs", "gone", "-f", "--raw") as follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if "#100]" in line)
        kubectl = terminal.cluster.kubectl
        kubectl("delete", "job", "gone", "--namespace", terminal.namespace, "--cascade=foreground")
        rest = follower.stdout.read()
    shown = fake_trainer.numbers(rest)
    assert shown == list(range(101, 101 + len(shown)))
    assert follower.returncode == 4
    assert "there is no batch job `gone`" in rest.splitlines()[-1]


def test_no_line_is_lost_or_repeated_over_200_cuts(cut: Cut) -> None:
    sys.stdout.write(f"seed {cut.seed}\n")
    code = cut.follower.wait(timeout=600)
    said = cut.said.read_text()
    assert code == 0, said[-2000:]
    assert cut.cutter.cuts >= CUTS
    assert fake_trainer.numbers(cut.shown.read_text()) == list(range(1, LINES + 1))
    assert f" {LINES:,} lines from 1 device, 0 missing" in said
    assert "are lost" not in said
