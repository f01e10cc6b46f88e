"""A crashed run continues from a snapshot in memory, which reaches the disk in every case: real processes and kills.

`PNAS_TEST_RESTART_KILLS=20` kills that often instead of twice, and with 1 and 8 ranks too. The seed is printed;
`PNAS_TEST_KILL_SEED` sets it.
"""

import json
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

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
from trainer.checkpoint.reading import list_checkpoints, read_manifest
from trainer.shared.errors import RESUMABLE

STEPS, EVERY = 11, 4
"""Eight ranks have images for no more steps of an epoch."""
SNAPSHOTS = ("--snapshot-every", str(EVERY), "--checkpoint-every", "1h", "--log-interval", "1", "--steps", str(STEPS))


def _repeated_steps(run: Path) -> Counter[int]:
    """Return how many steps each later attempt has taken again."""
    path = run / "metrics-replaced.jsonl"
    rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return Counter(row["attempt"] for row in rows if row.get("kind") == "step")


def _kill(nodes: list[BackgroundTrainer], attempt: int, draw: random.Random) -> None:
    """Kill a random worker of this attempt, at a random moment after its first steps."""
    began = "] start mode=" if attempt == 1 else f" attempt={attempt} time="
    least = draw.randint(1, EVERY * 2)

    def has_begun(output: str) -> bool:
        return began in output and output.rpartition(began)[2].count("[rank 0 cpu:0 ") > least

    assert nodes[0].wait_for(has_begun), nodes[0].output
    time.sleep(draw.uniform(0, 0.1))
    node, worker = draw.choice([(node, worker) for node in nodes for worker in node.workers()])
    node.kill(trainer=False, workers=[worker])


@pytest.mark.parametrize(("nodes", "world_size", "kills"), killed_jobs((1, 2, 1), (2, 2, 1)))
def test_a_killed_run_repeats_only_the_steps_since_its_last_snapshot(
    tmp_path: Path, few_digits: Path, capsys: pytest.CaptureFixture[str], *, nodes: int, world_size: int, kills: int
) -> None:
    seed = kill_seed()
    draw, epochs = random.Random(seed), 2 + kills // 2
    options = ("--epochs", str(epochs), *SNAPSHOTS)
    whole = train(tmp_path, *recipe("--npus", str(world_size), *options), data=few_digits, name="whole")
    assert whole.code == 0, whole.stdout
    own = ("--npus", str(world_size // nodes), "--restarts", str(kills), *options)
    running = start_nodes(tmp_path, few_digits, *own, nodes=nodes)
    for attempt in range(1, kills + 1):
        _kill(running, attempt, draw)
    outputs = [(node.wait(), node.output) for node in running]
    assert [code for code, _ in outputs] == [0] * nodes, (seed, outputs)
    run, output = tmp_path / "killed", outputs[0][1]
    repeated, snapshots = _repeated_steps(run), re.findall(r"\[rank 0 \S+ #\d+\] resumed .* snapshot=(\d+)", output)
    with capsys.disabled():
        figures = " ".join(str(repeated[attempt]) for attempt in range(2, kills + 2))
        sys.stdout.write(
            f"\n{nodes} nodes, {world_size} ranks, --snapshot-every {EVERY}: repeated {figures}; continued from "
            f"{len(snapshots)} snapshots; seed {seed}\n"
        )
    assert len(re.findall(r" restart attempt=\d+ ", output)) == kills, output
    assert max(repeated.values(), default=0) <= EVERY, output
    for _, lines in outputs:
        assert_no_line_lost(lines)
    assert_same_run(whole.run, run, last_step=epochs * STEPS)
    left = [str(path) for path in Path("/dev/shm").glob("pnas-snapshots-*")]
    assert not [path for path in left if f"{path}/" in output], "the memory is given back"


def _killed(tmp_path: Path, data: Path, *options: str) -> BackgroundTrainer:
    running = BackgroundTrainer(tmp_path, data, "--npus", "2", "--epochs", "2", *SNAPSHOTS, *options, name="run")
    assert running.wait_for(lambda output: f"step={2 * EVERY + 1} " in output), running.output
    running.kill(trainer=False, workers=running.workers()[1:])
    return running


def _assert_saved_and_whole(output: str, tmp_path: Path, data: Path) -> None:
    """Check that the last snapshot is on the disk, and compare the resumed run with an undisturbed one."""
    run = tmp_path / "run"
    newest = list_checkpoints(run / "checkpoints")[0]
    assert f"saved the last snapshot as {newest}" in output, output
    step = read_manifest(newest).content["progress"]["global_step"]
    assert step >= EVERY + 1
    resumed = train(tmp_path, *recipe("--epochs", "2", *SNAPSHOTS, "--resume", "auto"), data=data, name="run")
    assert resumed.code == 0, resumed.stdout
    assert f"goes on from {newest} " in resumed.stdout
    whole = train(tmp_path, *recipe("--npus", "2", "--epochs", "2", *SNAPSHOTS), data=data, name="whole")
    assert_same_run(whole.run, run, last_step=2 * STEPS)


def test_a_pod_without_restarts_saves_the_last_snapshot_before_it_ends(tmp_path: Path, few_digits: Path) -> None:
    running = _killed(tmp_path, few_digits, "--restarts", "0")
    assert running.wait() == 1, running.output
    assert 'cause="killed by SIGKILL' in running.output.splitlines()[-1]
    _assert_saved_and_whole(running.output, tmp_path, few_digits)


def test_a_pod_that_is_stopped_while_its_workers_restart_saves_the_last_snapshot(
    tmp_path: Path, few_digits: Path
) -> None:
    running = _killed(tmp_path, few_digits, "--restarts", "1")
    assert running.wait_for(lambda output: " restart attempt=2" in output), running.output
    running.signal(signal.SIGTERM)
    assert running.wait() == RESUMABLE, running.output
    _assert_saved_and_whole(running.output, tmp_path, few_digits)
