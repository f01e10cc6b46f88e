"""A killed worker costs seconds: the pods stay, and the next new step comes sooner than from new pods.

`PNAS_TEST_RESTART_KILLS=20` kills that often instead of twice, in a job of one pod too. The seed is printed.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.local.conftest import train
from tests.local.resumable_runs import assert_same_run

KILLS = int(os.environ.get("PNAS_TEST_RESTART_KILLS", "2"))
WORKER = b"PNAS_WORKER_TASK="
STEPS_PER_EPOCH = 4
EPOCHS_PER_KILL = 30
"""A few seconds of training, in which the test finds the processes of the pods."""


def _processes(pod: dict[str, Any], *, workers: bool) -> list[int]:
    """Return the process ids, on this machine, of a pod's workers or of its whole trainer."""
    uid, processes = pod["metadata"]["uid"], []
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            is_trainer = (
                uid in group.read_text().replace("_", "-") and b"trainer" in group.with_name("cmdline").read_bytes()
            )
            is_worker = is_trainer and WORKER in group.with_name("environ").read_bytes()
        except OSError:
            continue  # the process has just ended
        if is_worker or (is_trainer and not workers):
            processes.append(int(group.parent.name))
    return processes


class _Job:
    """A job on the cluster, as its output folder shows it on this machine."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self.terminal, self.name = terminal, name

    @property
    def steps(self) -> int:
        """The number of steps in its metrics."""
        path = self.terminal.output(self.name) / "metrics.jsonl"
        rows = path.read_bytes().splitlines()[-20:] if path.exists() else []
        numbers = [int(match[1]) for row in rows if (match := re.search(rb'"global_step": (\d+)', row))]
        return max(numbers, default=-1) + 1

    def until_new_step(self, after: int, follower: "subprocess.Popen[str]") -> None:
        until(lambda: self.steps > after or follower.poll() is not None, within_s=600, every_s=0.02)
        assert follower.poll() is None, follower.communicate()[0]

    def running_pods(self) -> list[dict[str, Any]]:
        return [pod for pod in self.terminal.pods(self.name) if pod["status"]["phase"] == "Running"]

    def log_lines(self) -> Iterator[tuple[float, str]]:
        """Yield the lines of rank 0, with their times in seconds since 1970, from all pods of its life."""
        for pod in sorted(self.terminal.pods(self.name), key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            log = ("logs", "--timestamps", "--namespace", self.terminal.namespace, pod["metadata"]["name"])
            for line in self.terminal.cluster.kubectl(*log).splitlines():
                moment, _, text = line.partition(" ")
                if text.startswith("[rank 0 "):
                    yield datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", moment)).timestamp(), text


def _seconds_to_new_steps(lines: list[tuple[float, str]], kills: list[float]) -> list[float]:
    """Return the seconds from each kill to the first step that was not done before it."""
    steps = [
        (moment, STEPS_PER_EPOCH * int(match[1]) + int(match[2]))
        for moment, text in lines
        if (match := re.search(r"\] step epoch=(\d+) .*\bstep=(\d+) ", text))
    ]
    seconds = []
    for kill, following in zip(kills, [*kills[1:], float("inf")], strict=True):
        # A line can be on its way when the process is killed: only lines of the next process count as new.
        starts = [moment for moment, text in lines if "] start mode=" in text and kill < moment < following]
        before = max(step for moment, step in steps if moment < starts[0])
        seconds.append(min(moment for moment, step in steps if step > before and moment > starts[0]) - kill)
    return seconds


@pytest.mark.parametrize("nodes", [1, 2] if KILLS > 2 else [2])
def test_killed_workers_are_replaced_in_their_pods_sooner_than_pods(
    terminal: Terminal, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nodes: int
) -> None:
    seed = int(os.environ.get("PNAS_TEST_KILL_SEED") or random.SystemRandom().randrange(2**32))
    draw, epochs = random.Random(seed), EPOCHS_PER_KILL * (KILLS + 2)
    words = (
        "--mode",
        "full",
        "--epochs",
        str(epochs),
        "--checkpoint-every",
        "3",
        "--restarts",
        str(KILLS),
        "--lr",
        "0.02",
    )
    job = _Job(terminal, "struck")
    killed: list[float] = []

    def strike(follower: "subprocess.Popen[str]", *, workers: bool) -> None:
        job.until_new_step(job.steps, follower)
        time.sleep(draw.uniform(0, 0.3))
        processes = [process for pod in job.running_pods() for process in _processes(pod, workers=workers)]
        before = job.steps
        killed.append(time.time())
        for process in [draw.choice(processes)] if workers else processes:
            os.kill(process, signal.SIGKILL)
        job.until_new_step(before, follower)

    own = ("--npus", "1", "--nodes", str(nodes), "--retries", "3", "--name", job.name)
    with terminal.start("submit", *POD, *SMALL, *own, *words) as follower:
        job.until_new_step(0, follower)
        pods = {pod["metadata"]["uid"] for pod in terminal.pods(job.name)}
        for _ in range(KILLS):
            strike(follower, workers=True)
        assert {pod["metadata"]["uid"] for pod in terminal.pods(job.name)} == pods
        strike(follower, workers=False)
        output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, (seed, output)
    assert f" lines from {nodes} devices, 0 missing" in output.replace("1 device,", "1 devices,"), output
    assert output.count("] restart attempt=") == KILLS * nodes
    seconds = _seconds_to_new_steps(list(job.log_lines()), killed)
    in_place, recreated = statistics.median(seconds[:-1]), seconds[-1]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{nodes} pods, seed {seed}: {KILLS} kills, {in_place:.1f} s in place (at most "
            f"{max(seconds[:-1]):.1f} s), {recreated:.1f} s with new pods: {in_place / recreated:.2f}\n"
        )
    options = (*SMALL, "--device", "cpu", "--threads", "1", "--npus", str(nodes), *words)
    whole = train(tmp_path, *options, data=digits, name="whole", timeout_s=600 * KILLS)
    assert whole.code == 0, whole.stdout
    assert_same_run(whole.run, terminal.output(job.name), last_step=epochs * STEPS_PER_EPOCH)
    assert json.loads(terminal.run("status", job.name, "--json").stdout)["status"]["phase"] == "Succeeded"
