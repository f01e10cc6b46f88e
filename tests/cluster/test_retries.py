"""A job goes on through evictions and ends after as many real failures as it may have, on both kinds of jobs.

The evictions are requests of the Eviction API, as of a drain. PNAS_TEST_EVICTIONS sets how many there are: Kubernetes
waits 10 s before a Job's second pod, and twice as long before each one after it.
"""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.support.terminal import POD, SMALL, Terminal, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.ranktable_writer import ranktable_writer
from tests.cluster.testbed.volcano.install import Volcano

EVICTIONS = int(os.environ.get("PNAS_TEST_EVICTIONS", "3"))
RETRIES = EVICTIONS // 2
EPOCHS, STEPS_PER_EPOCH = 60, 4


@pytest.fixture
def images(tmp_path: Path, digits: Path) -> Path:
    """Return a copy of the images that a test can change."""
    return Path(shutil.copytree(digits, tmp_path / "images"))


@pytest.fixture
def terminals(
    cluster: Cluster, volcano: Volcano, namespace: str, tmp_path: Path, images: Path
) -> Iterator[list[Terminal]]:
    """Return a terminal for each kind of job, in one namespace."""
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with (
        ranktable_writer(cluster),
        restricted(cluster, namespace, tmp_path, images, ["pnas.test/ranktable=true", *labels]) as terminal,
    ):
        yield [
            Terminal(cluster, namespace, tmp_path, terminal.kubeconfig, {"PNAS_BACKEND": kind})
            for kind in ("batch", "volcano")
        ]


def job_name(terminal: Terminal) -> str:
    return f"{terminal.variables['PNAS_BACKEND']}-job"


def evict(terminal: Terminal, pod: str) -> None:
    """Evict a pod by the Eviction API."""
    place = {"name": pod, "namespace": terminal.namespace}
    file = terminal.home / f"{pod}-eviction.json"
    file.write_text(json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": place}))
    path = f"/api/v1/namespaces/{terminal.namespace}/pods/{pod}/eviction"
    terminal.cluster.kubectl("create", "--raw", path, "--filename", str(file))


def steps_taken(terminal: Terminal) -> int:
    """Return how many steps the job has recorded."""
    path = terminal.output(job_name(terminal)) / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.is_file() else 0


def pods_by_uid(terminal: Terminal) -> dict[str, str]:
    """Return the names of the job's pods that run."""
    pods = terminal.pods(job_name(terminal))
    return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"}


def has_gone_on(terminal: Terminal, done: int) -> bool:
    return steps_taken(terminal) > done


def state(terminal: Terminal) -> str:
    """Return what a person would look at first."""
    return "".join(terminal.run(command, job_name(terminal)).stdout for command in ("status", "logs"))


def evict_again_and_again(terminal: Terminal) -> "tuple[int, str]":
    """Submit a job, and evict its pod each time that it has taken steps; return the launcher's exit code and output."""
    words = ("--npus", "1", "--mode", "full", "--epochs", str(EPOCHS), "--lr", "0.001", "--retries", str(RETRIES))
    evicted: set[str] = set()
    with (
        ThreadPoolExecutor(1) as reader,
        terminal.start("submit", *POD, *SMALL, *words, "--name", job_name(terminal)) as follower,
    ):
        # A launcher that cannot write reads no log, and an evicted pod's log is soon gone.
        output = reader.submit(follower.communicate, timeout=900)
        for _ in range(EVICTIONS):
            until(lambda: pods_by_uid(terminal).keys() - evicted)
            done = steps_taken(terminal)
            until(functools.partial(has_gone_on, terminal, done), functools.partial(state, terminal))
            ((uid, pod),) = ((uid, pod) for uid, pod in pods_by_uid(terminal).items() if uid not in evicted)
            evict(terminal, pod)
            evicted.add(uid)
            until(lambda: not pods_by_uid(terminal).keys() & evicted)
        text, _ = output.result()
    return follower.returncode, text


def test_evictions_use_up_no_retry(terminals: list[Terminal]) -> None:
    with ThreadPoolExecutor() as threads:
        ends = list(threads.map(evict_again_and_again, terminals))
    for terminal, (code, output) in zip(terminals, ends, strict=True):
        assert code == 0, output
        assert output.count("received SIGTERM") == EVICTIONS, output
        assert ", 0 missing" in output
        rows = map(json.loads, (terminal.output(job_name(terminal)) / "metrics.jsonl").read_text().splitlines())
        steps = [row["global_step"] for row in rows if row["kind"] == "step"]
        assert steps == list(range(EPOCHS * STEPS_PER_EPOCH)), "each step once"


def test_real_failures_use_up_the_retries(terminals: list[Terminal], images: Path) -> None:
    """A broken image fails each try at its first evaluation."""
    next(images.glob("val/*/*")).write_bytes(b"not an image")
    words = ("--npus", "1", "--mode", "full", "--epochs", "1", "--retries", "1", "--name")

    def run(terminal: Terminal) -> "subprocess.CompletedProcess[str]":
        return terminal.submit(*words, job_name(terminal))

    with ThreadPoolExecutor() as threads:
        results = list(threads.map(run, terminals))
    for terminal, result in zip(terminals, results, strict=True):
        assert result.returncode == 1, result.stdout + result.stderr
        assert "no retry: --retries 1 of this job are used up" in result.stdout
        assert any(text in result.stderr.splitlines()[-1] for text in ("exit code 7", "/data/val/")), result.stderr
        status = json.loads(terminal.run("status", job_name(terminal), "--json").stdout)["status"]
        assert (status["phase"], status["restarts"]) == ("Failed", 1)
        attempts = sorted(terminal.output(job_name(terminal)).glob("attempt*.json"))
        assert [json.loads(path.read_text())["try_ended"] for path in attempts] == ["failed", "failed"]
