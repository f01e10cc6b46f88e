"""A job's log through a connection that is cut again and again: none lost, none repeated, every real loss announced."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.launching import Terminal
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.cutter import Cutter

pytestmark = pytest.mark.timeout(3600)

SPEAKER = "localhost/speaker:1"
# As the trainer's supervisor does: numbered lines of one rank, and at the end their count.
SPEAKER_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
int main(int argc, char **argv) {
  long lines = atol(argv[1]), per_s = atol(argv[2]), width = atol(argv[3]);
  int code = argc > 4 ? atoi(argv[4]) : 0;
  char *pad = calloc(1, width + 1);
  memset(pad, 'x', width);
  setvbuf(stdout, 0, _IOLBF, 4096);
  struct timespec nap = {0, 10000000};
  for (long i = 1; i <= lines; i++) {
    printf("[rank 0 cpu:0 #%ld] step %s\n", i, pad);
    if (per_s && i % (per_s / 100 ? per_s / 100 : 1) == 0) nanosleep(&nap, 0);
  }
  printf("[node 0 #1] ended lines=\"0:%ld\"\n", lines);
  return code;
}
"""
LINES = 100_000
CUTS = 200


def load_speaker(cluster: Cluster, folder: Path) -> None:
    """Make the image, and give it to every node."""
    program = folder / "speaker"
    command = ["cc", "-static", "-Os", "-x", "c", "-o", str(program), "-"]
    subprocess.run(command, input=SPEAKER_C, text=True, check=True)
    settings = {"Entrypoint": ["/speaker"]}
    archive = images.archive(folder / "speaker.tar", SPEAKER, {"speaker": program.read_bytes()}, config=settings)
    for node in cluster.nodes:
        node.load(archive)


def speaking(name: str, *words: object, retries: int = 0) -> dict[str, Any]:
    """A job that the launcher takes for its own."""
    labels = {"pnas/job": name, "app.kubernetes.io/name": "pnas"}
    container = {
        "name": "trainer",
        "image": SPEAKER,
        "imagePullPolicy": "Never",
        "args": [str(word) for word in words],
    }
    pod = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"backoffLimit": retries, "template": pod}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec}


def create(cluster: Cluster, namespace: str, job: dict[str, Any]) -> None:
    job["metadata"]["namespace"] = namespace
    cluster.create(job)


def through(terminal: Terminal, port: int) -> Path:
    """A kubeconfig that leads through a relay."""
    config = json.loads(terminal.cluster.kubectl("config", "view", "--raw", "--output=json"))
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = terminal.home / "through"
    path.write_text(json.dumps(config))
    return path


def numbers(raw: str) -> list[int]:
    return [int(number) for number in re.findall(r"^\[rank 0 cpu:0 #(\d+)\]", raw, re.MULTILINE)]


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    load_speaker(cluster, tmp_path)
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_no_line_is_lost_or_repeated_over_200_cuts(terminal: Terminal) -> None:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    create(terminal.cluster, terminal.namespace, speaking("cut", LINES, 1000, 20))
    server = json.loads(terminal.cluster.kubectl("config", "view", "--raw", "--output=json"))["clusters"][0]["cluster"]
    with Cutter(int(server["server"].rpartition(":")[2]), every_s=0.25, silence_s=0.5, seed=seed) as cutter:
        config = through(terminal, cutter.port)
        done = terminal.run("logs", "cut", "-f", "--raw", "--kubeconfig", str(config), timeout_s=900)
        cuts = cutter.cuts
    assert done.returncode == 0, done.stderr[-2000:]
    assert cuts >= CUTS
    assert numbers(done.stdout) == list(range(1, LINES + 1))
    assert f" {LINES:,} lines from 1 device, 0 missing" in done.stderr
    assert "are lost" not in done.stderr


def test_both_attempts_of_a_job_that_is_tried_again_are_shown_whole(terminal: Terminal) -> None:
    create(terminal.cluster, terminal.namespace, speaking("twice", 500, 1000, 20, 1, retries=1))
    done = terminal.run("logs", "twice", "-f", "--raw")
    assert done.returncode == 1
    assert numbers(done.stdout) == [*range(1, 501), *range(1, 501)]
    assert " 1,000 lines from 1 device, 0 missing" in done.stderr
    assert "exit code 1" in done.stderr.splitlines()[-1]


def test_a_job_that_is_deleted_is_shown_to_its_last_line_and_then_missed(terminal: Terminal) -> None:
    create(terminal.cluster, terminal.namespace, speaking("gone", 100_000, 100, 20))
    follower = terminal.start("logs", "gone", "-f", "--raw")
    with follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if "#100]" in line)
        kubectl = terminal.cluster.kubectl
        kubectl("delete", "job", "gone", "--namespace", terminal.namespace, "--cascade=foreground")
        rest = follower.stdout.read()
    shown = numbers(rest)
    assert shown == list(range(101, 101 + len(shown)))
    assert follower.returncode == 4
    assert "there is no batch job `gone`" in rest.splitlines()[-1]


@pytest.fixture(scope="module")
def rotating() -> Iterator[Cluster]:
    """A cluster whose kubelets keep very little of a log."""
    with testbed.running(nodes=1, container_log_max_size="64Ki", container_log_max_files=2) as one:
        yield one


def test_what_rotation_has_taken_is_announced_and_nothing_else_is_missing(
    cluster: Cluster, rotating: Cluster, tmp_path: Path
) -> None:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    assert cluster.kubeconfig != rotating.kubeconfig
    testbed.namespace(rotating, "rotation")
    load_speaker(rotating, tmp_path)
    terminal = Terminal(rotating, "rotation", tmp_path, rotating.kubeconfig, {"PNAS_BACKEND": "batch"})
    create(rotating, "rotation", speaking("much", 20_000, 1000, 1000))
    server = json.loads(rotating.kubectl("config", "view", "--raw", "--output=json"))["clusters"][0]["cluster"]
    time.sleep(3)
    with Cutter(int(server["server"].rpartition(":")[2]), every_s=2, silence_s=2, seed=1) as cutter:
        config = through(terminal, cutter.port)
        done = terminal.run("logs", "much", "-f", "--raw", "--kubeconfig", str(config), timeout_s=900)
    shown = numbers(done.stdout)
    assert shown == sorted(set(shown)), "in order, none repeated"
    missing = 20_000 - len(shown)
    assert missing > 0, "or this test proves nothing"
    assert f"{missing:,} missing" in done.stderr
    said = re.findall(r"^--- lines? (\d+)(?:-(\d+))? of rank 0 cpu:0 (?:is|are) missing ---", done.stderr, re.MULTILINE)
    announced = [(int(first), int(last or first)) for first, last in said]
    assert sum(last - first + 1 for first, last in announced) == missing
