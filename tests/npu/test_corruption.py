"""Silent corruption on emulated NPUs: each flipped bit is found and its rank is named; a clean run raises no alarm.

PNAS_TEST_BIT_FLIPS=100 and PNAS_TEST_CLEAN_STEPS=3340 raise the numbers, which count for each arithmetic, and
PNAS_TEST_REPLAYS=100 the number of flips with two ranks. PNAS_TEST_FLIP_SEED draws other flips.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.local.conftest import TrainerResult
from tests.local.resumable_runs import assert_same_run
from tests.npu.bit_flips import BAD_PASSES
from tests.npu.conftest import O2, Run
from trainer.checkpoint.reading import read_manifest
from trainer.shared.errors import NO_RETRY

FLIPS = int(os.environ.get("PNAS_TEST_BIT_FLIPS", "10"))
CLEAN_STEPS = int(os.environ.get("PNAS_TEST_CLEAN_STEPS", "70"))
REPLAYS = int(os.environ.get("PNAS_TEST_REPLAYS", "4"))
SEED = os.environ.get("PNAS_TEST_FLIP_SEED", "20")
COMPARED = ("--compare-every", "2", "--checkpoint-every", "3")
THREE = ("--epochs", "1", "--steps", "12", "--npus", "3", "--precision", "fp32", *COMPARED)


def _flip(*faults: str) -> dict[str, str]:
    """Return the variable for emulated memory in which bits flip: `DEVICE:STEP:PART`."""
    return {"NPU_EMULATED_FLIP": ",".join(faults)}


@pytest.mark.parametrize(("precision", "graph"), [("fp32", "off"), ("fp16", "off"), ("O2", "off"), ("fp32", "on")])
def test_each_flipped_bit_is_found_and_its_rank_named_and_clean_steps_raise_no_alarm(
    npus: dict[str, str], tmp_path: Path, precision: str, graph: str
) -> None:
    """Three ranks; steps without an update and accumulated gradients among the clean ones."""
    numbers = ("--flips", str(FLIPS), "--clean-steps", str(CLEAN_STEPS), "--accumulate", "2")
    small = ("--small",) if graph == "on" else ()
    counts = _count(npus, tmp_path, "--precision", precision, "--graph", graph, *small, *numbers)
    assert counts["alarms"] == 0, counts
    assert counts["compared"] == counts["clean_steps"] * 11 // 10, "each step, and each time after an average"
    assert counts["skipped"] >= BAD_PASSES, "and the steps in which the first loss scale overflows"
    assert counts["corrupted"] == counts["found"] == counts["named"] == FLIPS, counts


def test_a_replay_names_the_wrong_one_of_two_ranks_or_neither(npus: dict[str, str], tmp_path: Path) -> None:
    """The flips are in the repeated steps, so that the wrong state spreads to the other rank before it is found."""
    outcomes = _count(npus, tmp_path, "--ranks", "2", "--replays", str(REPLAYS))["replays"]
    assert outcomes["named"] + outcomes.get("unknown", 0) == REPLAYS, f"seed {SEED}: {outcomes}"


def _count(npus: dict[str, str], folder: Path, *options: str) -> dict[str, Any]:
    """Run `bit_flips.py`, and return its counts."""
    environ = {**os.environ, **npus, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    output = folder / "counts.json"
    command = [sys.executable, "-m", "tests.npu.bit_flips", "--seed", SEED, *options, "--output", str(output)]
    subprocess.run(command, env=environ, check=True)
    counts: dict[str, Any] = json.loads(output.read_text())
    return counts


def test_two_ranks_tell_by_a_replay_which_one_was_wrong_and_end_like_an_undisturbed_run(
    run: Run, in_o2: TrainerResult
) -> None:
    done = run("replayed", *O2, *COMPARED, environ=_flip("1:4:weights"))
    assert done.code == 0, done.stdout
    first, second = done.events("corruption")
    assert (first["rank"], first["told_by"]) == ("unknown", '"no')
    assert (second["rank"], second["device"], second["told_by"]) == ("1", '"npu:1', "replay")
    assert first["step"] == second["step"]
    assert_same_run(in_o2.run, done.run, last_step=12)
    assert read_manifest(done.run / "checkpoints/step-000000012").content["agreed_ranks"] == 2


def test_a_device_that_is_wrong_again_ends_the_attempt_and_is_the_first_cause(run: Run) -> None:
    done = run("repeated", *THREE, environ=_flip("2:6:gradient", "2:10:momentum"))
    assert done.code == 1, done.stdout
    first, second = done.events("corruption", rank=2)
    assert [(line["rank"], line["told_by"]) for line in (first, second)] == [("2", "majority")] * 2
    assert len(done.events("rewound")) == 1
    last = done.stdout.splitlines()[-1]
    assert 'failed rank=2 device=npu:2 cause="the device failed (silent corruption)' in last
    assert not any(line["rank"] != "2" for line in done.events("corruption"))
    rows = [(row["rank"], row["device"].split()[0], row["action"]) for row in done.metrics("corruption")]
    assert rows == [("2", "npu:2", "roll back"), ("2", "npu:2", "end")]
    steps = [row["global_step"] for row in done.metrics("step")]
    assert steps == sorted(set(steps)), "a step that was repeated must be there once"


def test_the_run_stops_on_request_and_keeps_the_agreed_checkpoint(run: Run) -> None:
    done = run("stopped", *THREE, "--on-corruption", "stop", environ=_flip("0:8:weights"))
    assert done.code == NO_RETRY, done.stdout
    assert "--on-corruption stop ends the run" in done.stdout.splitlines()[-1]
    newest = max((done.run / "checkpoints").glob("step-*"))
    manifest = read_manifest(newest)
    assert manifest.content["progress"]["global_step"] < 8
    assert manifest.content["agreed_ranks"] == 3
