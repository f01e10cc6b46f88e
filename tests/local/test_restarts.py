"""A crashed worker costs seconds: its pod starts new workers, and the run ends with the bits of an undisturbed one.

`PNAS_TEST_RESTART_KILLS=20` kills that often instead of once or twice, and more kinds of jobs. The seed is printed;
`PNAS_TEST_KILL_SEED` sets it.
"""

import json
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import (
    BackgroundTrainer,
    assert_no_line_lost,
    assert_same_run,
    kill_seed,
    killed_jobs,
    recipe,
    start_nodes,
)
from trainer.shared.errors import NO_RETRY, RESUMABLE
from trainer.topology.ports import free_port
from trainer.worker.task import TASK_VARIABLE

STEPS = 6
TASK = TASK_VARIABLE.encode()


class _Job:
    """The supervisors of a run: one for each node, all on this machine."""

    def __init__(self, output: Path, data: Path, *options: str, nodes: int = 1) -> None:
        self.attempts_at_once: set[frozenset[int]] = set()
        """The attempts whose workers were seen at the same moment."""
        self.nodes = start_nodes(output, data, *options, nodes=nodes)

    def kill_one(self, attempt: int, draw: random.Random) -> None:
        """Kill a random worker of this attempt, a few steps after its first one."""
        began = "] start mode=" if attempt == 1 else f" attempt={attempt} time="
        first = self.nodes[0]
        assert first.wait_for(lambda output: self._look() and "] step " in output.partition(began)[2]), first.output
        time.sleep(draw.uniform(0, 0.3))
        workers = [(node, worker) for node in self.nodes for worker in node.workers()]
        node, worker = draw.choice(workers)
        node.kill(trainer=False, workers=[worker])

    def wait(self) -> list[int]:
        """Wait until all supervisors have ended; return their exit codes."""
        return [node.wait() for node in self.nodes]

    def _look(self) -> bool:
        """Note the attempts of all workers that run at this moment, by their tasks."""
        tasks = (_task(worker) for node in self.nodes for worker in node.workers())
        self.attempts_at_once.add(frozenset(task["attempt"] for task in tasks if task))
        return True


def _task(worker: int) -> dict[str, Any]:
    """Return the task in a worker's environment; empty if it has just ended, or not begun."""
    try:
        variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    texts = (value for variable in variables for name, _, value in [variable.partition(b"=")] if name == TASK)
    task: dict[str, Any] = json.loads(next(texts, b"{}"))
    return task


@pytest.mark.parametrize(("nodes", "world_size", "kills"), killed_jobs((1, 1, 1), (2, 2, 1)))
def test_a_run_whose_workers_are_killed_goes_on_in_its_pods_with_the_same_bits(
    tmp_path: Path, few_digits: Path, capsys: pytest.CaptureFixture[str], *, nodes: int, world_size: int, kills: int
) -> None:
    seed = kill_seed()
    draw, epochs = random.Random(seed), 2 + kills
    options = ("--epochs", str(epochs), "--steps", str(STEPS), "--log-interval", "1")
    with capsys.disabled():
        sys.stdout.write(f"\n{nodes} nodes, {world_size} ranks, {kills} kills, seed {seed}\n")
    whole = train(tmp_path, *recipe("--npus", str(world_size), *options), data=few_digits, name="whole")
    assert whole.code == 0, whole.stdout
    own = ("--npus", str(world_size // nodes), "--restarts", str(kills), *options)
    job = _Job(tmp_path, few_digits, *own, nodes=nodes)
    for attempt in range(1, kills + 1):
        job.kill_one(attempt, draw)
    assert job.wait() == [0] * nodes, (seed, *(node.output for node in job.nodes))
    killed = whole.run.with_name("killed")
    assert_same_run(whole.run, killed, last_step=epochs * STEPS)
    assert max(map(len, job.attempts_at_once)) == 1, job.attempts_at_once
    for node in job.nodes:
        assert_no_line_lost(node.output)
        restarts = re.findall(
            r'^\[node \d #\d+\] restart attempt=(\d+) rank=\d+ device=\S+ cause="killed by SIGKILL',
            node.output,
            re.MULTILINE,
        )
        assert restarts == [str(attempt) for attempt in range(2, kills + 2)], node.output
    records = [
        json.loads((killed / f"attempt{end}.json").read_text()) for end in ("", *(f"-{n}" for n in range(2, kills + 2)))
    ]
    assert [record["outcome"] for record in records] == ["failed"] * kills + ["succeeded"]
    assert all("killed by SIGKILL" in record["restarted_after"] for record in records[1:])
    places = ("checkpoints/step-", "/dev/shm/pnas-snapshots-")
    assert all((record["checkpoint"] or places[0]).startswith(places) for record in records)
    # One container has one file of lines per rank.
    assert [path.name for path in (killed / "0").glob("console-*")] == ["console-1.log"]
    lines = job.nodes[0].output.splitlines(keepends=True)
    assert (killed / "0/console-1.log").read_text() == "".join(line for line in lines if line.startswith("[rank 0 "))


def test_a_node_that_starts_after_the_end_of_its_run_ends_without_its_peer(tmp_path: Path, few_digits: Path) -> None:
    options = ("--npus", "1", "--epochs", "1", "--steps", "2", "--resume", "auto")
    assert _Job(tmp_path, few_digits, *options, nodes=2).wait() == [0, 0]
    run = tmp_path / "killed"
    metrics = (run / "metrics.jsonl").read_bytes()
    place = ("--nodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    for node in (1, 0):
        late = BackgroundTrainer(tmp_path, few_digits, *options, *place, "--node-rank", str(node), name="killed")
        assert late.wait() == 0, late.output
        result = "PnasNet5Tiny_bs16_2p_acc.log: this node has nothing left to do"
        assert late.output.count(f"] complete: the result of {run} is in {result}\n") == 1, late.output
        assert "outcome=succeeded" in late.output.splitlines()[-1], late.output
    assert (run / "metrics.jsonl").read_bytes() == metrics
    record = json.loads((run / "attempt-2.json").read_text())
    assert (record["outcome"], record["try_ended"], record["steps"]) == ("succeeded", "done", 2)


def test_a_pod_whose_restarts_are_used_up_ends_and_a_stop_is_no_crash(tmp_path: Path, few_digits: Path) -> None:
    options = ("--epochs", "100", "--npus", "1", "--log-interval", "1", "--resume", "auto", "--restarts", "1")
    job = _Job(tmp_path, few_digits, *options)
    (running,) = job.nodes
    draw = random.Random(0)
    for attempt in (1, 2):
        job.kill_one(attempt, draw)
    assert job.wait() == [1]
    assert_no_line_lost(running.output)
    *before, ended, last = running.output.splitlines()
    # Then the pod can save a snapshot, and tells how the attempt ended.
    reason = "no restart: --restarts 1 of this hour are used up"
    assert any(line.endswith(reason) for line in before[-3:]), running.output
    assert ended.endswith("outcome=failed")
    assert "failed rank=" in last
    assert 'cause="killed by SIGKILL' in last
    stopped = BackgroundTrainer(tmp_path, few_digits, *options, name="killed")
    assert stopped.wait_for(lambda output: "] step " in output)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE
    assert " restart attempt=" not in stopped.output


def test_a_failure_that_the_worker_understands_is_no_crash(tmp_path: Path, few_digits: Path) -> None:
    options = recipe("--lr", "1e30", "--steps", "3", "--epochs", "4", "--restarts", "3")
    result = train(tmp_path, *options, data=few_digits)
    assert result.code == NO_RETRY
    assert "was not finite" in result.stdout.splitlines()[-1]
    assert " restart attempt=" not in result.stdout
