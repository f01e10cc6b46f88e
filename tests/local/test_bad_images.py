"""Images that cannot be decoded: a run stops at the first one, or skips them; the data decides what replaces them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.local.conftest import TrainerResult, small_options, train

TRAIN, VAL = 48, 12
# Truncated, empty, and not an image. The first two are neighbours: the image after them replaces both.
DAMAGED_TRAIN = {"train/b/004.jpg": 200, "train/b/005.jpg": 0, "train/c/015.jpg": -1}
DAMAGED_VAL = {"val/a/001.jpg": 200}
# The new name of the third one, in which a terminal would obey.
ODD_NAME = "train/c/015\nerror: lost\r\x1b[2J.jpg"


def _write(folder: Path, damaged: Mapping[str, int]) -> Path:
    """Write images of noise in three classes; `damaged` has the size that a file is cut to, or -1 for text."""
    draw = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            path = folder / split / "abc"[number % 3] / f"{number // 3:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path)
    for name, size in damaged.items():
        path = folder / name
        path.write_bytes(path.read_bytes()[:size] if size >= 0 else b"not an image at all\n")
    return folder


def _run(output: Path, data: Path, *options: str) -> TrainerResult:
    defaults = {"--batch-size": "8", "--epochs": "2", "--lr": "0.01"}
    settings = defaults | dict(zip(options[::2], options[1::2], strict=True))
    return train(output, *small_options(*(word for pair in settings.items() for word in pair)), data=data)


def _bad_images(result: TrainerResult) -> list[dict[str, Any]]:
    lines = (result.run / "bad_images.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda row: str(row["path"]))


def _errors(result: TrainerResult) -> list[str]:
    return [line.partition("] error ")[2] for line in result.stdout.splitlines() if "] error " in line]


@pytest.mark.parametrize("damaged", [{"train/b/004.jpg": 200}, {"val/a/001.jpg": -1}], ids=["training", "evaluation"])
def test_a_run_stops_at_a_bad_image_with_its_path_on_one_line(tmp_path: Path, damaged: dict[str, int]) -> None:
    data = _write(tmp_path / "data", damaged)
    result = _run(tmp_path / "out", data, "--workers", "1")
    assert result.code == 1
    (path,) = damaged
    (error,) = _errors(result)
    assert error.startswith(f"{data / path}: ")
    assert "Traceback" not in result.stdout + result.stderr
    assert not (result.run / "bad_images.jsonl").exists()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _write(tmp_path_factory.mktemp("damaged"), DAMAGED_TRAIN | DAMAGED_VAL)
    (folder / "train/c/015.jpg").rename(folder / ODD_NAME)
    (folder / "train/c/notes.txt").write_text("no image")
    return folder


SKIP = ("--on-bad-image", "skip", "--max-bad-images", "0.1", "--npus", "2")


@pytest.fixture(scope="module")
def skipped(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerResult:
    return _run(tmp_path_factory.mktemp("skipped"), damaged, *SKIP)


def test_a_run_with_skip_lists_each_bad_image_once_and_evaluates_all_others(
    damaged: Path, skipped: TrainerResult
) -> None:
    assert skipped.code == 0, skipped.stdout + skipped.stderr
    truncated = "truncated, the end of the file is missing"
    assert _bad_images(skipped) == [
        {"path": str(damaged / path), "reason": reason, "split": split, "sample": sample, "replaced_by": replaced_by}
        for path, reason, split, sample, replaced_by in (
            ("train/b/004.jpg", truncated, "train", 20, 22),
            ("train/b/005.jpg", "empty, zero bytes", "train", 21, 22),
            (ODD_NAME, "not an image", "train", 47, 0),
            ("val/a/001.jpg", truncated, "val", 1, None),
        )
    ]
    lines = skipped.stdout.splitlines()
    assert f"left out of {damaged / 'train'}: .txt 1" in lines
    assert not any("\x1b" in line or line.startswith("error") for line in lines)
    for row in skipped.metrics("eval"):
        assert row["images"] == VAL
        # Three classes: every image is right within five answers, unless it has no answer.
        assert row["top5"] == pytest.approx(100 * (VAL - 1) / VAL)


def test_the_skipped_images_do_not_depend_on_the_number_of_loaders(
    damaged: Path, skipped: TrainerResult, tmp_path: Path
) -> None:
    other = _run(tmp_path, damaged, *SKIP, "--workers", "2")
    for kind in ("step", "eval"):
        rows, expected = ([row | {"time": None} for row in run.metrics(kind)] for run in (other, skipped))
        assert rows == expected
    assert _bad_images(other) == _bad_images(skipped)


def test_a_job_gives_up_when_its_devices_together_skip_too_many_images(damaged: Path, tmp_path: Path) -> None:
    # With this seed one device meets the first two in the first epoch, and the other the last two.
    result = _run(tmp_path, damaged, *SKIP, "--max-bad-images", "0.05", "--seed", "3", "--epochs", "1")
    assert result.code == 1
    errors = _errors(result)
    assert errors
    assert all(f"3 images of {damaged / 'train'} cannot be decoded, more than the 2" in error for error in errors)
    assert "Traceback" not in result.stdout + result.stderr
    assert len(_bad_images(result)) == 3
