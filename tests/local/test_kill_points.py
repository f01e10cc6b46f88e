"""A run that is killed again and again, at any moment and any part of it, ends with the bits of one that was not."""

import os
import random
import sys
import time
from pathlib import Path

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe

MOMENTS = ("step", "write", "evaluation", "epoch end")
VICTIMS = ("one rank", "all ranks", "the trainer alone", "everything")
STEPS = 4
KILLS = {1: 8, 2: 8, 4: 3, 8: 1}
"""How often a run of so many processes is killed: each of them is started anew every time, which takes longest."""
EPOCHS = {1: 4, 2: 4, 4: 4, 8: 2}
"""As many as so many kills need, some of which wait for an epoch's end."""


def _strike(running: BackgroundTrainer, run: Path, moment: str, victims: str, draw: random.Random) -> bool:
    """Kill at a random time in `moment`; False if the run was over before."""
    last_step = f"step={STEPS} steps={STEPS} "
    found = {
        "step": lambda: running.wait_for(lambda said: "] step epoch=" in said),
        "write": lambda: _until_writing(running, run),
        "evaluation": lambda: running.wait_for(lambda said: last_step in said),
        "epoch end": lambda: running.wait_for(lambda said: "] eval epoch=" in said),
    }[moment]()
    time.sleep(draw.uniform(0, {"step": 0.4, "write": 0.01, "evaluation": 0.1, "epoch end": 0.05}[moment]))
    workers = running.workers() if found else []
    if not workers:
        return False
    if victims == "one rank":
        workers = [draw.choice(workers)]
    running.kill(
        trainer=victims in {"the trainer alone", "everything"},
        workers=[] if victims == "the trainer alone" else workers,
    )
    return True


def _until_writing(running: BackgroundTrainer, run: Path) -> bool:
    """Wait until it writes; the ranks of the attempt before may write on for a moment after their trainer's end."""
    if not running.wait_for(lambda said: "] start mode=" in said):
        return False
    since = time.time()
    return running.wait_for(lambda _said: _is_writing(run, since=since))


def _is_writing(run: Path, *, since: float) -> bool:
    """Whether a checkpoint is half written; those of a writer that was killed before `since` do not count."""
    try:
        return any(path.stat().st_mtime > since for path in run.glob("checkpoints/.step-*.partial"))
    except FileNotFoundError:  # it has just been finished
        return True


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (1, "--accumulate 2 --micro-batch 9 --mixup 0.2 --cutmix 1 --clip-norm 1 --label-smoothing 0.1 --dropout 0.3"),
        (2, "--precision fp16"),
        (4, "--precision bf16 --channels-last"),
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
    """PNAS_KILL_SEED repeats the moments of a test that has failed, as far as a machine's timing can be repeated."""
    seed = int(os.environ.get("PNAS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    draw = random.Random(seed)
    epochs = EPOCHS[world_size]
    fixed = ("--npus", str(world_size), "--epochs", str(epochs), "--steps", str(STEPS), *options.split())
    whole = train(tmp_path, *recipe(*fixed), data=few_digits, name="whole")
    assert whole.code == 0, whole.stdout
    moments = draw.sample(MOMENTS * 2, k=len(MOMENTS) * 2)[: KILLS[world_size]]
    survived = []
    for moment in moments:
        victims, workers = draw.choice(VICTIMS), str(draw.randrange(3))
        running = BackgroundTrainer(
            tmp_path, few_digits, *fixed, "--resume", "auto", "--workers", workers, name="killed"
        )
        assert _strike(running, whole.run.with_name("killed"), moment, victims, draw), (seed, moment, running.output)
        assert running.wait() != 0
        survived.append(f"{victims} in {moment}")
    with capsys.disabled():
        sys.stdout.write(f"\n{world_size} processes, seed {seed}: killed {', '.join(survived)}\n")
    resumed = train(tmp_path, *recipe(*fixed, "--resume", "auto", "--workers", "1"), data=few_digits, name="killed")
    assert resumed.code == 0, (seed, resumed.stdout)
    assert_same_run(whole.run, resumed.run, last_step=epochs * STEPS)
