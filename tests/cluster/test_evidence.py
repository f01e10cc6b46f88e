"""The log of CANN, here the stand-in's, outlives its pod: forced deletion, eviction, no memory.

`PNAS_TEST_EVIDENCE_KILLS=10` ends a pod in each of these ways ten times instead of once, three times in a job:
Kubernetes waits 10 s before a Job's second pod, and twice as long before each one after it.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import NPU_POD, SMALL, Terminal
from tests.cluster.support.waiting import until

KILLS = int(os.environ.get("PNAS_TEST_EVIDENCE_KILLS", "1"))
KILLS_OF_A_JOB = 3
# A batch for which the memory does not suffice, but does to start CANN.
LARGE = {"--batch-size": "1024", "--image-size": "128"}
TOO_LARGE = ("--memory", "900Mi", *(LARGE.get(flag, word) for flag, word in zip(("", *SMALL), SMALL, strict=False)))


def _pod(terminal: Terminal, job: str) -> dict[str, Any] | None:
    pods = terminal.pods(job)
    running = [
        pod for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    return running[0] if running else None


def _steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def _has_more_steps(run: Path, steps: int) -> bool:
    return _steps(run) > steps


def _words(terminal: Terminal, job: str) -> str:
    return terminal.run("status", job).stdout + terminal.run("logs", job).stdout


def _is_gone(terminal: Terminal, job: str, pod: str) -> bool:
    running = _pod(terminal, job)
    return running is None or running["metadata"]["name"] != pod


def _evict(terminal: Terminal, pod: str) -> None:
    place = f"/api/v1/namespaces/{terminal.namespace}/pods/{pod}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": terminal.namespace}}
    path = terminal.home / "eviction.json"
    path.write_text(json.dumps(body))
    terminal.cluster.kubectl("create", "--raw", place, "-f", str(path))


def _delete(terminal: Terminal, pod: str) -> None:
    terminal.cluster.kubectl("delete", "pod", pod, "--namespace", terminal.namespace, "--grace-period=0", "--force")


def _check_log(run: Path, attempt: int) -> None:
    (log,) = (run / f"evidence/attempt-{attempt}/node-0/process_log/rank-0/run/plog").glob("plog-*_*.log")
    assert "attr init success, device_id=0" in log.read_text(), log


def _end_pods(terminal: Terminal, job: str, end: Any, times: int) -> None:
    """End the job's pod several times, each time after it has taken a step; each time its log of CANN must be there."""
    words = ("--npus", "1", "--mode", "full", "--epochs", "10000", "--lr", "0.001", "--retries", "99")
    started = terminal.run("submit", *NPU_POD, *SMALL, *words, "--detach", "--name", job)
    assert started.returncode == 0, started.stderr
    run, words_of_job = terminal.output(job), partial(_words, terminal, job)
    for attempt in range(1, times + 1):
        config = run / ("config.yaml" if attempt == 1 else f"config-{attempt}.yaml")
        until(config.exists, words_of_job, within_s=300)
        until(partial(_has_more_steps, run, _steps(run)), words_of_job, within_s=300)
        pod = _pod(terminal, job)
        assert pod is not None
        end(terminal, pod["metadata"]["name"])
        until(partial(_is_gone, terminal, job, pod["metadata"]["name"]))
        _check_log(run, attempt)
    until((run / f"config-{times + 1}.yaml").exists, words_of_job)
    until(lambda: "] step " in terminal.run("logs", job).stdout, every_s=2)
    attempts = json.loads(terminal.run("status", job, "--history", "--json").stdout)["items"]
    assert [one["attempt"] for one in attempts][:times] == list(range(1, times + 1))
    assert all(one["node"] and one["steps"] and one["outcome"] for one in attempts[:times]), attempts
    assert terminal.run("delete", job, "--force").returncode == 0


@pytest.mark.parametrize("end", [_delete, _evict], ids=["deleted by force", "evicted"])
def test_the_log_of_cann_outlives_its_pod(terminal: Terminal, capsys: pytest.CaptureFixture[str], end: Any) -> None:
    for begun in range(0, KILLS, KILLS_OF_A_JOB):
        _end_pods(terminal, f"gone-{begun}", end, min(KILLS_OF_A_JOB, KILLS - begun))
    with capsys.disabled():
        sys.stdout.write(f"\nend by {end.__name__}: CANN's log found {KILLS}/{KILLS}\n")


def test_the_log_of_cann_outlives_a_pod_without_memory(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(KILLS):
        words = ("--npus", "1", "--mode", "full", "--retries", "0", "--restarts", "0", "--name", f"large-{number}")
        result = terminal.run("submit", *NPU_POD, *TOO_LARGE, *words)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "(OOMKilled)" in result.stderr.splitlines()[-1]
        _check_log(terminal.output(f"large-{number}"), 1)
    with capsys.disabled():
        sys.stdout.write(f"\npod out of memory: CANN's log found {KILLS}/{KILLS}\n")
