"""A job's log through a connection that is cut again and again: none lost, none repeated, every real loss announced."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import speaker
from tests.cluster.launching import Terminal
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.cutter import Cutter

pytestmark = pytest.mark.timeout(3600)

LINES = 100_000
CUTS = 200


def relayed(terminal: Terminal, port: int) -> Path:
    """A kubeconfig that leads through a relay."""
    server = {"server": f"https://127.0.0.1:{port}"}
    return terminal.changed("through", lambda config: config["clusters"][0]["cluster"].update(server))


def port_of(cluster: Cluster) -> int:
    return int(cluster.config["clusters"][0]["cluster"]["server"].rpartition(":")[2])


def shown_until(follower: "subprocess.Popen[str]", words: str) -> str:
    """What it shows, up to the first line with these words."""
    assert follower.stdout is not None
    said = ""
    for line in follower.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    speaker.load(cluster, tmp_path)
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_no_line_is_lost_or_repeated_over_200_cuts(terminal: Terminal) -> None:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    speaker.create(terminal.cluster, terminal.namespace, "cut", LINES, 1000, 20)
    with Cutter(port_of(terminal.cluster), every_s=0.25, silence_s=0.5, seed=seed) as cutter:
        config = relayed(terminal, cutter.port)
        done = terminal.run("logs", "cut", "-f", "--raw", "--kubeconfig", str(config), timeout_s=900)
        cuts = cutter.cuts
    assert done.returncode == 0, done.stderr[-2000:]
    assert cuts >= CUTS
    assert speaker.numbers(done.stdout) == list(range(1, LINES + 1))
    assert f" {LINES:,} lines from 1 device, 0 missing" in done.stderr
    assert "are lost" not in done.stderr


def test_a_server_that_is_away_for_a_while_ends_nobodys_waiting(terminal: Terminal) -> None:
    speaker.create(terminal.cluster, terminal.namespace, "long", 3_000, 200, 20)
    with Cutter(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as cutter:
        config = str(relayed(terminal, cutter.port))
        waiting = terminal.start("wait", "long", "--kubeconfig", config)
        follower = terminal.start("logs", "long", "-f", "--raw", "--kubeconfig", config)
        said = shown_until(follower, "#100]")
        with cutter.away():
            said += shown_until(follower, "the cluster does not answer")
            time.sleep(4)
        said += follower.communicate(timeout=120)[0]
        waited, _ = waiting.communicate(timeout=120)
    assert follower.returncode == 0, said
    assert said.count("the cluster does not answer") == said.count("the cluster answers again") == 1
    assert speaker.numbers(said) == list(range(1, 3_001))
    assert " 3,000 lines from 1 device, 0 missing" in said
    assert waiting.returncode == 0, waited
    assert waited.splitlines()[-1] == "long Succeeded"


def test_a_job_that_waits_is_still_followed_when_the_server_comes_back(terminal: Terminal) -> None:
    speaker.create(terminal.cluster, terminal.namespace, "late", 100, 0, 20, node="nowhere")
    with Cutter(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as cutter:
        config = str(relayed(terminal, cutter.port))
        follower = terminal.start("logs", "late", "-f", "--kubeconfig", config)
        shown_until(follower, "job late: Pending: 0/2 nodes are available")
        with cutter.away():
            shown_until(follower, "the cluster does not answer")
        shown_until(follower, "the cluster answers again")
        terminal.cluster.kubectl("delete", "job", "late", "--namespace", terminal.namespace)
        said, _ = follower.communicate(timeout=60)
    assert follower.returncode == 4, said


def test_a_line_longer_than_a_runtimes_is_shown_whole(terminal: Terminal) -> None:
    """A runtime like containerd writes a line of more than 16 KiB in parts."""
    speaker.create(terminal.cluster, terminal.namespace, "wide", 50, 100, 100_000)
    done = terminal.run("logs", "wide", "-f", "--raw")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[:-1]
    assert [line.partition("step ")[2] for line in lines] == ["x" * 100_000] * 50
    assert speaker.numbers(done.stdout) == list(range(1, 51))
    assert " 50 lines from 1 device, 0 missing" in done.stderr


def test_both_attempts_of_a_job_that_is_tried_again_are_shown_whole(terminal: Terminal) -> None:
    speaker.create(terminal.cluster, terminal.namespace, "twice", 500, 1000, 20, 1, retries=1)
    done = terminal.run("logs", "twice", "-f", "--raw")
    assert done.returncode == 1
    assert speaker.numbers(done.stdout) == [*range(1, 501), *range(1, 501)]
    assert " 1,000 lines from 1 device, 0 missing" in done.stderr
    assert "exit code 1" in done.stderr.splitlines()[-1]


def test_a_job_that_is_deleted_is_shown_to_its_last_line_and_then_missed(terminal: Terminal) -> None:
    speaker.create(terminal.cluster, terminal.namespace, "gone", 100_000, 100, 20)
    follower = terminal.start("logs", "gone", "-f", "--raw")
    with follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if "#100]" in line)
        kubectl = terminal.cluster.kubectl
        kubectl("delete", "job", "gone", "--namespace", terminal.namespace, "--cascade=foreground")
        rest = follower.stdout.read()
    shown = speaker.numbers(rest)
    assert shown == list(range(101, 101 + len(shown)))
    assert follower.returncode == 4
    assert "there is no batch job `gone`" in rest.splitlines()[-1]


@pytest.fixture(scope="module")
def rotating() -> Iterator[Cluster]:
    """A cluster whose kubelets keep very little of a log."""
    with testbed.running(nodes=1, container_log_max_size="64Ki", container_log_max_files=2) as one:
        yield one


def test_a_cluster_without_volcano_is_given_kubernetes_jobs(
    cluster: Cluster, rotating: Cluster, tmp_path: Path
) -> None:
    """It needs `cluster` as the next one does."""
    assert cluster.kubeconfig != rotating.kubeconfig
    testbed.namespace(rotating, "plain")
    done = Terminal(rotating, "plain", tmp_path, rotating.kubeconfig).submit("--npus", "8", "--dry-run", "server")
    assert done.returncode == 0, done.stderr
    assert "has no Volcano (--backend batch)" in done.stderr
    assert "the cluster accepts it; nothing was started" in done.stdout


def test_what_rotation_has_taken_is_announced_and_nothing_else_is_missing(
    cluster: Cluster, rotating: Cluster, tmp_path: Path
) -> None:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    assert cluster.kubeconfig != rotating.kubeconfig
    testbed.namespace(rotating, "rotation")
    speaker.load(rotating, tmp_path)
    terminal = Terminal(rotating, "rotation", tmp_path, rotating.kubeconfig, {"PNAS_BACKEND": "batch"})
    speaker.create(rotating, "rotation", "much", 20_000, 1000, 1000)
    time.sleep(3)
    with Cutter(port_of(rotating), every_s=2, silence_s=2, seed=1) as cutter:
        config = relayed(terminal, cutter.port)
        done = terminal.run("logs", "much", "-f", "--raw", "--kubeconfig", str(config), timeout_s=900)
    shown = speaker.numbers(done.stdout)
    assert shown == sorted(set(shown)), "in order, none repeated"
    missing = 20_000 - len(shown)
    assert missing > 0, "or this test proves nothing"
    assert f"{missing:,} missing" in done.stderr
    said = re.findall(r"^--- lines? (\d+)(?:-(\d+))? of rank 0 cpu:0 (?:is|are) missing ---", done.stderr, re.MULTILINE)
    announced = [(int(first), int(last or first)) for first, last in said]
    assert sum(last - first + 1 for first, last in announced) == missing
