"""Whole runs of the real trainer on real images: the promises of each mode."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import one_document
from tests.local.conftest import SMALL, TrainerResult, small_options, train
from trainer.shared.config import resolve_train_config, user_layers


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerResult:
    """Train on two devices for four epochs, which teaches the network to read digits in a quarter of a minute."""
    options = ("--npus", "2", "--epochs", "4", "--lr", "0.1", "--nesterov", "--schedule", "cosine-step")
    recipe = ("--warmup-epochs", "1", "--flip", "0", "--crop-scale", "0.8", "--eval-crop", "1.0", "--dropout", "0")
    output = tmp_path_factory.mktemp("trained")
    result = train(output, *small_options(*options, *recipe, "--normalize", "half", "--augment", "affine"), data=digits)
    assert result.code == 0, result.stdout + result.stderr
    return result


def test_a_full_run_learns_real_images(trained: TrainerResult) -> None:
    (summary,) = trained.events("result")
    assert float(summary["top1"]) >= 90
    assert int(summary["images"]) == 360
    assert float(summary["fps"]) > 0
    best = max((float(event["top1"]), -int(event["epoch"])) for event in trained.events("eval"))
    assert (float(summary["best_top1"]), -int(summary["best_epoch"])) == best


def test_a_full_run_leaves_every_promised_file(trained: TrainerResult) -> None:
    names = {str(path.relative_to(trained.run)) for path in trained.run.rglob("*") if path.is_file()}
    promised = {
        "config.yaml",
        "provenance.json",
        "evidence/attempt-1/node-0/environment.json",
        "metrics.jsonl",
        "PnasNet5Tiny_bs32_2p_acc.log",
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        *(f"{rank}/train_{rank}.log" for rank in range(2)),
        *(f"{rank}/console-1.log" for rank in range(2)),
    }
    assert promised <= names
    assert any(name.startswith("tensorboard/") for name in names)


def test_a_run_begins_with_its_environment(trained: TrainerResult) -> None:
    first, *others = trained.stdout.splitlines()
    assert re.fullmatch(r"environment torch=2\.\S+ python=3\.\S+ cpus=\d+", first)
    report = one_document((trained.run / "evidence/attempt-1/node-0/environment.json").read_text(), "Environment")
    assert f" python={report['python']} " in first
    assert not [
        line for line in others if line.startswith("environment") and not line.startswith("environment problem:")
    ]


def test_every_line_of_every_device_is_numbered_without_gap(trained: TrainerResult) -> None:
    for rank in range(2):
        prefix = f"[rank {rank} cpu:{rank} #"
        shown = [line for line in trained.stdout.splitlines() if line.startswith(prefix)]
        numbers = [int(line.removeprefix(prefix).partition("]")[0]) for line in shown]
        assert numbers == list(range(1, len(numbers) + 1))
        assert (trained.run / str(rank) / "console-1.log").read_text().splitlines() == shown


def test_metrics_hold_each_step_once_and_match_the_printed_lines(trained: TrainerResult) -> None:
    steps = trained.metrics("step")
    per_epoch = 1437 // 64
    assert [(row["epoch"], row["step"]) for row in steps] == [(e, s) for e in range(4) for s in range(per_epoch)]
    printed = trained.events("step")
    for line in printed:
        row = steps[int(line["epoch"]) * per_epoch + int(line["step"]) - 1]
        assert float(line["loss"]) == pytest.approx(row["loss"], rel=1e-5)
    assert trained.events("eval", rank=0) == trained.events("eval", rank=1)


def test_the_result_file_and_the_seeds_tables_agree_with_the_result(trained: TrainerResult) -> None:
    (summary,) = trained.events("result")
    text = (trained.run / "PnasNet5Tiny_bs32_2p_acc.log").read_text()
    values = dict(line.split(" = ") for line in text.splitlines())
    assert float(values["TrainAccuracy"]) == pytest.approx(float(summary["top1"]), abs=1e-3)
    assert float(values["ActualFPS"]) == pytest.approx(float(summary["fps"]), rel=1e-3)
    rows = (trained.run / "1" / "train_1.log").read_text().splitlines()
    assert len(rows) == 5
    assert float(rows[-1].split("\t")[4]) == pytest.approx(float(summary["top1"]), abs=1e-4)


def test_provenance_names_command_device_versions_and_settings(trained: TrainerResult) -> None:
    values = json.loads((trained.run / "provenance.json").read_text())
    assert values["command"][1:3] == ["-m", "trainer"]
    assert values["world_size"] == 2
    assert values["threads"] == 1
    assert values["device"]["backend"] == "gloo"
    assert {"torch", "torchvision", "pnas"} <= set(values["versions"])
    assert len(values["config_sha256"]) == 64


def test_an_evaluation_of_the_trained_weights_counts_every_image_once(
    trained: TrainerResult, digits: Path, tmp_path: Path
) -> None:
    """Run one case; test_exact_evaluation.py has other numbers of devices and batch sizes."""
    options = ("--npus", "3", "--batch-size", "7", "--mode", "eval")
    weights = ("--weights", str(trained.run / "checkpoints" / "last.safetensors"))
    result = train(tmp_path, *small_options(*options, *weights), data=digits)
    assert result.code == 0, result.stdout + result.stderr
    (summary,) = result.events("result")
    assert summary["images"] == "360"
    assert summary["top1"] == trained.events("eval")[-1]["top1"]
    ahead = result.events("progress")
    assert [float(event["done"]) for event in ahead] == sorted({float(event["done"]) for event in ahead})
    assert 0 < float(ahead[0]["done"]) < 100
    assert {"left_s", "left_low_s", "left_high_s", "fps"} <= ahead[0].keys()
    assert [row["done"] for row in result.metrics("progress")] == [float(event["done"]) for event in ahead]
    assert result.events("progress", rank=1) == []


def test_an_evaluation_knows_its_classes_by_their_names(trained: TrainerResult, digits: Path, tmp_path: Path) -> None:
    weights = trained.run / "checkpoints" / "last.safetensors"
    options = small_options("--mode", "eval", "--npus", "1", "--weights", str(weights))
    val = tmp_path / "data" / "val"
    val.mkdir(parents=True)
    for label in range(1, 10):
        (val / str(label)).symlink_to(digits / "val" / str(label))
    some = train(tmp_path, *options, data=val.parent, name="some")
    assert some.code == 0, some.stdout + some.stderr
    (found,), (summary,) = some.events("weights"), some.events("result")
    assert (found["source"], found["classes"]) == ("pnas", "10")
    assert int(summary["images"]) < 360
    # Taken for 0 to 8, the digits 1 to 9 would all be wrong.
    assert float(summary["top1"]) >= 85

    (val / "9").rename(val / "nine")
    refused = train(tmp_path, *options, data=val.parent, name="refused")
    assert refused.code == 2
    (error,) = [line for line in refused.stdout.splitlines() if "] error " in line]
    assert "do not know class nine; their 10 classes are 0, 1, 2 and 7 more; rename the folders" in error


def test_finetuning_starts_from_the_weights(trained: TrainerResult, digits: Path, tmp_path: Path) -> None:
    weights = ("--weights", str(trained.run / "checkpoints" / "last.safetensors"))
    result = train(tmp_path, *small_options("--mode", "finetune", "--steps", "3", "--flip", "0", *weights), data=digits)
    assert result.code == 0, result.stdout + result.stderr
    before, after = (float(run.events("eval")[-1]["top1"]) for run in (trained, result))
    assert abs(before - after) < 2
    # The weights bring the normalisation along, and config.yaml is what ran: as a profile it is the same run again.
    ran = json.loads((result.run / "provenance.json").read_text())["config"]
    assert (ran["normalize"], ran["npus"], ran["device"]) == ("half", 1, SMALL["--device"])
    again, _ = resolve_train_config(user_layers({}, str(result.run / "config.yaml"), {}))
    assert again.model_dump(mode="json") == ran


def test_performance_mode_times_exactly_the_requested_steps(digits: Path, tmp_path: Path) -> None:
    options = ("--npus", "2", "--mode", "performance", "--steps", "30", "--warmup-steps", "4", "--batch-size", "32")
    result = train(tmp_path, *small_options(*options), data=digits)
    assert result.code == 0, result.stdout + result.stderr
    (summary,) = result.events("result")
    assert "top1" not in summary
    # The run is longer than an epoch of 22 steps; it counts its steps over both epochs.
    assert [row["global_step"] for row in result.metrics("step")] == list(range(34))
    assert (result.events("step")[-1]["step"], result.events("step")[-1]["steps"]) == ("34", "34")
    assert float(summary["fps"]) == pytest.approx(30 * 64 / float(summary["train_s"]), rel=1e-4)
    assert (result.run / "PnasNet5Tiny_bs32_2p_perf.log").exists()


def test_all_options_of_the_recipe_work_together(few_digits: Path, tmp_path: Path) -> None:
    options = ("--profile", "recommended", "--mixup", "0.2", "--cutmix", "0.2", "--accumulate", "2", "--epochs", "7")
    result = train(
        tmp_path,
        *("--device", "cpu", "--model", "pnasnet5tiny", "--image-size", "32", "--workers", "0", "--steps", "2"),
        *("--batch-size", "8", "--npus", "2", "--activation-checkpointing", *options),
        data=few_digits,
    )
    assert result.code == 0, result.stdout + result.stderr
    assert len(result.metrics("step")) == 14
    # The recipe's rate is 0.1 for 256 images; a step has 32 here, and the warm-up is 10 steps long.
    assert [row["lr"] for row in result.metrics("step")[:10]] == pytest.approx([n / 10 / 80 for n in range(1, 11)])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(digits: Path, tmp_path: Path, precision: str) -> None:
    options = ("--mode", "performance", "--steps", "2", "--warmup-steps", "1", "--batch-size", "8", "--lr", "0.01")
    result = train(tmp_path, *small_options(*options, "--precision", precision, "--clip-norm", "10"), data=digits)
    assert result.code == 0, result.stdout + result.stderr
    assert [row["loss"] for row in result.metrics("step")] == pytest.approx([2.3] * 3, abs=1.5)
    assert f"precision={precision}" in result.stdout


def test_the_same_run_gives_the_same_bits_with_any_number_of_loaders(digits: Path, tmp_path: Path) -> None:
    options = (
        "--npus",
        "2",
        "--epochs",
        "1",
        "--steps",
        "4",
        "--mixup",
        "0.2",
        "--dropout",
        "0.5",
        "--drop-path",
        "0.2",
    )
    losses = [
        [
            row["loss"]
            for row in train(
                tmp_path, *small_options(*options, "--workers", str(workers)), data=digits, name=f"workers{workers}"
            ).metrics("step")
        ]
        for workers in (0, 2)
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_a_killed_worker_stops_the_others_and_is_the_last_line(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "--data-path", str(digits), "--output", str(tmp_path), *small_options()]
    options = ["--run-name", "run", "--npus", "2", "--log-interval", "1"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        lines = []
        for line in trainer.stdout:
            lines.append(line)
            if line.startswith("[rank 1 ") and "] step " in line:
                break
        os.kill(_worker_pid(trainer.pid, rank=1), signal.SIGKILL)
        lines += trainer.stdout.readlines()
        assert trainer.wait() == 1
    assert "failed rank=1 device=cpu:1" in lines[-1]
    assert "SIGKILL" in lines[-1]
    assert not any("Traceback" in line for line in lines), "tracebacks of the other workers would hide the cause"


def _worker_pid(supervisor: int, *, rank: int) -> int:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        status = (process / "status").read_text()
        if f"PPid:\t{supervisor}\n" in status and f"RANK={rank}".encode() in (process / "environ").read_bytes().split(
            b"\0"
        ):
            return int(process.name)
    raise AssertionError(f"no worker with rank {rank} below process {supervisor}")
