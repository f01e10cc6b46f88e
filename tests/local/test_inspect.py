"""`python -m trainer inspect` on real checkpoints and weight files, whole and damaged."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.documents import one_document
from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.writing import write_checkpoint
from trainer.commands.inspect import inspect_app
from trainer.model.pnasnet import TINY, PNASNet5
from trainer.model.weight_files import DataConfig, weight_metadata
from trainer.model.weights import write_weights
from trainer.shared.errors import TrainerError, UsageError
from trainer.training.evaluation import Evaluation
from trainer.training.progress import TrainingProgress

SCORE = Evaluation(top1=70.012345678, top5=95.0, loss=1.25, images=360)
CONTENT = {
    "progress": TrainingProgress(
        epoch=2, step=3, steps=11, global_step=1025, images=96, planned=1352, wall_s=4321.7, best=SCORE, lr_factor=0.5
    ).to_json(),
    "run": {"name": "run", "mode": "full", "attempt": 2},
    "config": {"model": "pnasnet5tiny", "padding": "exact", "lr": 0.4, "epochs": 90},
    "num_classes": 10,
    "arithmetic": {"device": "cpu", "precision": "fp32", "threads": 1},
    "state": {"precision": {"scale": 2.0, "absent": None}, "empty": {}},
    "nothing": None,
}


def checkpoint(run: Path, step: int) -> Path:
    data = memoryview(bytes(range(64)))
    blobs = {f"model.w{number}": Blob("F32", (4, 4), data) for number in range(5)}
    blobs |= {"ema.w0": Blob("BF16", (32,), data), "ranks.0.rng": Blob("U8", (), data[:1])}
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    return write_checkpoint(run / "checkpoints", step, blobs, CONTENT).path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run with two checkpoints."""
    for step in (1000, 1025):
        checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    description = weight_metadata("pnasnet5tiny", "exact", 10, DataConfig(image_size=32))
    write_weights(path, PNASNet5(TINY, num_classes=10).state_dict(), description)
    return path


def damage(path: Path) -> None:
    """Flip one bit of the file's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def inspect(*arguments: str | Path) -> None:
    inspect_app([str(argument) for argument in arguments], result_action="return_value")


def test_a_checkpoint_is_shown_with_its_place_in_the_run_and_its_hashes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints/step-000001025"
    for argument in (path, path / "state.safetensors", path / "manifest.json"):
        inspect(argument)
        shown = capsys.readouterr().out
        lines = [line.strip().split("  ", maxsplit=1) for line in shown.splitlines() if "  " in line.strip()]
        facts = {line[0]: line[1].strip() for line in lines}
        assert shown.startswith(f"{path}  valid\n")
        assert facts["run"] == "name run, mode full, attempt 2"
        assert facts["step"] == "1,025"
        assert facts["epoch"] == "2 of 90 done; of the next 3 of 11 steps, 96 of 1,352 images"
        assert facts["lr factor"] == "0.5"
        assert facts["best score"] == "top1 70.0123, top5 95, loss 1.25, images 360"
        assert "last score" not in facts, "the run has no last score"
        assert facts["trained for"] == "4,322 s"
        assert facts["arithmetic"] == "device cpu, precision fp32, threads 1"
        assert facts["state precision"] == "scale 2"
        assert "empty" not in shown
        assert "nothing" not in shown
        assert facts["config"] == "model pnasnet5tiny, padding exact (all 4: --json)"
        assert facts["hashes"] == "7 of 7 valid"
        assert facts["model."] == "5 tensors, 320 bytes"
        assert facts["ranks."] == "1 tensor, 1 byte"
        assert facts["model.w2"].split() == ["F32", "4x4", "valid"]
        assert "model.w3" not in facts


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (TrainingProgress(), "0 of 90 done; of the next 0 steps, 0 images"),
        (
            TrainingProgress(epoch=1, step=11, steps=11, images=352, planned=352, equalised=True),
            "its evaluation to come",
        ),
        (TrainingProgress(epoch=90, global_step=990), "all 90 done"),
    ],
)
def test_the_position_of_a_run_is_readable_at_its_beginning_at_an_evaluation_and_at_its_end(
    tmp_path: Path, progress: TrainingProgress, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**CONTENT, "progress": progress.to_json()}
    inspect(write_checkpoint(tmp_path, 1, {"w": Blob("U8", (1,), memoryview(b"x"))}, content).path)
    assert shown in capsys.readouterr().out


def test_every_tensor_is_listed_with_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(run / "checkpoints/step-000001025", "--all")
    shown = capsys.readouterr().out
    assert "model.w4" in shown
    assert "more (--all)" not in shown


def test_each_checkpoint_of_a_run_is_listed_and_the_newest_is_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (run, run / "checkpoints"):
        inspect(folder)
        first, second, blank, shown, *_ = capsys.readouterr().out.splitlines()
        assert first == f"{run}/checkpoints/step-000001025  valid"
        assert second == f"{run}/checkpoints/step-000001000  valid"
        assert not blank
        assert shown == first


def test_a_damaged_checkpoint_of_a_run_is_named_and_the_newest_valid_one_is_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints/step-000001025/state.safetensors")
    with pytest.raises(TrainerError) as error:
        inspect(run)
    assert error.value.exit_code == 1
    newest = run / "checkpoints/step-000001025"
    assert str(error.value) == (
        f"{newest}: tensor ranks.0.rng: wrong sha256 (1 of 2 checkpoints are damaged); "
        "--resume takes the newest valid one"
    )
    first, _, _, shown, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{newest}  refused: tensor ranks.0.rng: wrong sha256"
    assert shown == f"{run}/checkpoints/step-000001000  valid"


def test_the_wrong_tensors_of_a_damaged_checkpoint_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints/step-000001025"
    damage(path / "state.safetensors")
    with pytest.raises(TrainerError, match=r"ranks\.0\.rng: wrong sha256; copy it again"):
        inspect(path)
    shown = capsys.readouterr().out
    assert "6 of 7 valid" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.endswith("wrong sha256")][1:] == ["ranks.0.rng"]
    (path / "state.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"state\.safetensors is missing"):
        inspect(path)
    assert "1,025" in capsys.readouterr().out
    (path / "manifest.json").write_bytes(b"")
    with pytest.raises(TrainerError, match=r"manifest\.json is empty"):
        inspect(path)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(TrainerError, match=r"manifest\.json is missing"):
        inspect(path)


def test_json_holds_every_tensor_and_the_whole_content(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / "checkpoints/step-000001025/state.safetensors")
    with pytest.raises(TrainerError):
        inspect(run, "--json")
    document = one_document(capsys.readouterr().out, "Inspection")
    assert [(Path(entry["path"]).name, entry["valid"]) for entry in document["checkpoints"]] == [
        ("step-000001025", False),
        ("step-000001000", True),
    ]
    assert document["checkpoints"][0]["refused"] == "tensor ranks.0.rng: wrong sha256"
    assert document["shown"]["content"] == CONTENT
    assert len(document["shown"]["tensors"]) == 7
    assert document["shown"]["tensors"]["ema.w0"] == {"dtype": "BF16", "shape": [32], "bytes": 64, "valid": True}


def test_a_weight_file_shows_its_model_and_its_data_settings(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(weights)
    shown = capsys.readouterr().out
    facts = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown.splitlines() if "  " in line}
    assert facts["model"] == "pnasnet5tiny"
    assert facts["padding"] == "exact"
    assert facts["num classes"] == "10"
    assert facts["hashes"] == "none in a weight file; its length is right"
    assert "last_linear.weight" in shown


@pytest.mark.parametrize(
    ("aux", "expected"),
    [
        (None, ("timm", "no auxiliary head; in state_dict module.", "exact")),
        ("seed", ("seed", "the seed's auxiliary head, saved from DDP; in state_dict module.", "seed")),
        ("tf", ("unknown", "an auxiliary head, not at the seed's place; in state_dict module.", None)),
    ],
)
def test_weights_of_other_programs_show_their_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], aux: Any, expected: tuple[str | None, ...]
) -> None:
    state = PNASNet5(TINY, 3, aux).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth.tar")
    inspect(tmp_path / "w.pth.tar", "--json")
    shown = one_document(capsys.readouterr().out, "Inspection")["shown"]
    content = shown["content"]
    assert (content["source"], content["told_by"], content["padding"]) == expected
    assert shown["tensors"]["last_linear.weight"] == {"dtype": "F32", "shape": [3, 320], "bytes": 3840, "valid": None}


def test_another_network_in_safetensors_stays_valid_and_is_called_unusable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    inspect(tmp_path / "w.safetensors")
    assert "usable   no: not a PNASNet-5 (it holds weight ...)" in capsys.readouterr().out


def test_a_damaged_weight_file_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = weights.read_bytes()
    path = tmp_path / "best.safetensors"
    cases = {
        b"": "best.safetensors is empty",
        whole[:7]: "not a weight file; expected weights of ours",
        whole[:100]: "its header is damaged",
        whole[:-1]: f"has {len(whole) - 1} bytes, not {len(whole)}: the end is missing",
        whole + b"\0": "something was added",
        b"PK\3\4 an archive": "damaged or not a weight file",
        b"\2\0\0\0\0\0\0\0[]": "not a weight file; expected weights of ours",
    }
    for content, expected in cases.items():
        path.write_bytes(content)
        with pytest.raises(TrainerError, match=expected) as error:
            inspect(path)
        assert error.value.exit_code == 1
        assert expected in capsys.readouterr().out


def test_a_path_without_a_checkpoint_gives_one_line_that_says_what_to_give(
    run: Path, tmp_path: Path, weights: Path
) -> None:
    with_weights = tmp_path / "timed/checkpoints"
    with_weights.mkdir(parents=True)
    shutil.copy(weights, with_weights)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases = {
        Path(os.devnull): "a pipe or device, not a regular file; give a checkpoint",
        tmp_path / "pipe": "a pipe or device, not a regular file; give a checkpoint",
        tmp_path / "absent": "no such file or folder",
        tmp_path: f"holds no checkpoint but 1 run(s): give one of them, such as {run}",
        with_weights.parent: f"only weights: give one of the files, such as {with_weights / 'best.safetensors'}",
        tmp_path / "empty": "holds no checkpoint; give",
    }
    for path, expected in cases.items():
        with pytest.raises(UsageError) as error:
            inspect(path)
        assert error.value.exit_code == 2
        assert str(error.value).startswith(f"{path}: ")
        assert expected in str(error.value)


def test_it_imports_neither_torch_nor_numpy(run: Path) -> None:
    program = (
        f"import sys; from trainer.commands.inspect import inspect_app; "
        f"inspect_app([{str(run)!r}], result_action='return_value'); "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
