"""A run ends with the bits of an undisturbed one, although any of its processes is killed at any moment, many times."""

import random
import sys
import time
from pathlib import Path

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, kill_seed, recipe

MOMENTS = ("step", "write", "evaluation", "epoch end")
VICTIMS = ("one rank", "all ranks", "only the trainer", "everything")
STEPS = 4
KILLS = {1: 8, 2: 8, 4: 3, 8: 1}
"""How often a run is killed, by its number of processes: each kill costs the start of every process."""
EPOCHS = {1: 4, 2: 4, 4: 4, 8: 2}
"""Enough for the kills, by number of processes; some kills wait for the end of an epoch."""


def _strike(running: BackgroundTrainer, run: Path, moment: str, victims: str, draw: random.Random) -> bool:
    """Kill at a random time in `moment`; return False if the run ended before."""
    last_step = f"step={STEPS} steps={STEPS} "
    moment_came = {
        "step": lambda: running.wait_for(lambda output: "] step epoch=" in output),
        "write": lambda: _until_writing(running, run),
        "evaluation": lambda: running.wait_for(lambda output: last_step in output),
        "epoch end": lambda: running.wait_for(lambda output: "] eval epoch=" in output),
    }[moment]()
    time.sleep(draw.uniform(0, {"step": 0.4, "write": 0.01, "evaluation": 0.1, "epoch end": 0.05}[moment]))
    workers = running.workers() if moment_came else []
    if not workers:
        return False
    if victims == "one rank":
        workers = [draw.choice(workers)]
    running.kill(
        trainer=victims in {"only the trainer", "everything"},
        workers=[] if victims == "only the trainer" else workers,
    )
    return True


def _until_writing(running: BackgroundTrainer, run: Path) -> bool:
    """Wait until this attempt writes a checkpoint; ranks of the killed attempt may still write for a moment."""
    if not running.wait_for(lambda output: "] start mode=" in output):
        return False
    since = time.time()
    return running.wait_for(lambda _output: _is_writing(run, since=since))


def _is_writing(run: Path, *, since: float) -> bool:
    """Return whether an unfinished checkpoint changed after `since`; older ones belong to a killed writer."""
    try:
        return any(path.stat().st_mtime > since for path in run.glob("checkpoints/.writing-*/step-*"))
    except FileNotFoundError:  # the checkpoint has just been finished
        return True


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (1, "--accumulate 2 --micro-batch 9 --mixup 0.2 --cutmix 1 --clip-norm 1 --label-smoothing 0.1 --dropout 0.3"),
        (2, "--precision fp16"),
        (4, "--precision bf16 --memory-format nchw"),
        (8, "--weight-decay 0.001 --nesterov"),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    tmp_path: Path,
    few_digits: Path,
    world_size: int,
    options: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Set PNAS_TEST_KILL_SEED to repeat the moments of a failed test, as far as the machine's timing allows."""
    seed = kill_seed()
    draw = random.Random(seed)
    epochs = EPOCHS[world_size]
    options_of_all = ("--npus", str(world_size), "--epochs", str(epochs), "--steps", str(STEPS), *options.split())
    whole = train(tmp_path, *recipe(*options_of_all), data=few_digits, name="whole")
    assert whole.code == 0, whole.stdout
    moments = draw.sample(MOMENTS * 2, k=len(MOMENTS) * 2)[: KILLS[world_size]]
    kills = []
    for moment in moments:
        victims, workers = draw.choice(VICTIMS), str(draw.randrange(3))
        running = BackgroundTrainer(
            tmp_path, few_digits, *options_of_all, "--resume", "auto", "--workers", workers, name="killed"
        )
        assert _strike(running, whole.run.with_name("killed"), moment, victims, draw), (seed, moment, running.output)
        assert running.wait() != 0
        kills.append(f"{victims} in {moment}")
    with capsys.disabled():
        sys.stdout.write(f"\n{world_size} processes, seed {seed}: killed {', '.join(kills)}\n")
    resumed = train(
        tmp_path, *recipe(*options_of_all, "--resume", "auto", "--workers", "1"), data=few_digits, name="killed"
    )
    assert resumed.code == 0, (seed, resumed.stdout)
    assert_same_run(whole.run, resumed.run, last_step=epochs * STEPS)
