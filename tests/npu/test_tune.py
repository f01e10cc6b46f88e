"""`prove --tune` on emulated NPUs whose steps take another time with each setting; one setting changes the losses."""

import os
import random
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.local.forked_trainer import run_forked_trainer
from trainer.proof.check import CheckPlace, Result
from trainer.proof.switches import Switch
from trainer.proof.timed_run import TRAINER_COMMAND
from trainer.proof.tune import TuningPlan, tune_switches
from trainer.proof.tuned_profile import TunedProfile
from trainer.shared.config import resolve_train_config, user_layers

SEEDS = int(os.environ.get("PNAS_TEST_TUNE_SEEDS", "0"))
"""How many machines to tune with eight settings; 0 for one with three."""
RECIPE = {
    "PNAS_MODEL": "pnasnet5tiny",
    "PNAS_IMAGE_SIZE": "32",
    "PNAS_BATCH_SIZE": "2",
    "PNAS_AUX": "none",
    "PNAS_WORKERS": "0",
    "PNAS_THREADS": "1",
}
USUAL_MS, BEST_MS = 300, 20
"""Far apart, so that other programs of this machine do not matter."""


@pytest.mark.timeout(900 + 600 * SEEDS)
@pytest.mark.parametrize("seed", range(SEEDS or 1))
def test_the_best_setting_is_found_and_a_setting_that_changes_losses_is_refused(
    seed: int, npus: dict[str, str], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    values = [str(number) for number in range(3, 11 if SEEDS else 6)]
    draw.shuffle(values)
    best, changing, *others = values
    waits = {value: draw.randint(150, 450) for value in others} | {best: BEST_MS, changing: 0}
    table = [f"TASK_QUEUE_ENABLE={value}:{wait}{':reversed' * (value == changing)}" for value, wait in waits.items()]
    environ = {**os.environ, **npus, **RECIPE, "NPU_EMULATED_STEP_MS": " ".join((str(USUAL_MS), *table))}
    config, _ = resolve_train_config(user_layers({"mode": "performance"}, None, environ))
    switch = Switch("TASK_QUEUE_ENABLE", tuple(values), "planted")
    profile = tmp_path / "tuned.yaml"
    place = CheckPlace("npu", (0,), 0, 0)
    plan = TuningPlan(place, config, environ, (switch,), TunedProfile(profile), timed_s=1.0)
    results: list[Result] = []
    assert tune_switches(plan, tmp_path / "scratch", _fork, say=lambda _line: None, report=results.append) is None
    shown = "\n".join(f"{result.check}: {result.outcome.measured}" for result in results)
    sys.stdout.write(f"seed {seed}: {' '.join(table)}\n{shown}\n")
    assert [result.outcome.verdict for result in results] == ["passed"] * 3, shown
    assert "losses of 3 runs are bit-equal" in results[0].outcome.measured
    assert f"{best}: chosen, " in results[1].outcome.measured
    assert f"{changing}: refused, changes the loss of step 1 by " in results[1].outcome.measured
    assert "chosen" in results[2].outcome.measured
    text = profile.read_text()
    assert yaml.safe_load(text) is None, "a variable is no setting"
    assert f"#   export TASK_QUEUE_ENABLE={best}\n" in text
    assert not (tmp_path / "scratch").exists()


def _fork(command: Sequence[str], environ: Mapping[str, str], output: Path, limit_s: float) -> int:
    """Run a command of the tuning as it does, but with a fork of the trainer."""
    if tuple(command[: len(TRAINER_COMMAND)]) != TRAINER_COMMAND:
        return subprocess.run(command, env=environ, check=False).returncode
    options = command[len(TRAINER_COMMAND) :]
    done = run_forked_trainer(options, environ=environ, file_limit=resource.RLIM_INFINITY, timeout_s=limit_s)
    output.write_text(done.stdout + done.stderr)
    return done.returncode
