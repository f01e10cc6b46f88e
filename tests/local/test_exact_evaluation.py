"""An evaluation's counts are those of the images, whoever counts them: any number of devices and any batch size.

Devices that get no image at all count too; a wrong count would show as another figure, since a figure is a sum of
integers over a number of images.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.local.conftest import Finished, small, train

IMAGES = 23


@pytest.fixture(scope="module")
def weights(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is right now and then."""
    options = ("--epochs", "1", "--steps", "30", "--lr", "0.05")
    done = train(tmp_path_factory.mktemp("trained"), *small(*options), data=digits)
    assert done.code == 0, done.stdout + done.stderr
    return done.run / "checkpoints" / "last.safetensors"


def _subset(digits: Path, folder: Path, count: int) -> Path:
    """`count` of the digits to evaluate on, in the classes of all of them."""
    images = sorted((digits / "val").glob("*/*"), key=lambda path: (path.name, path.parent.name))
    for image in images[:: len(images) // count][:count]:
        target = folder / "val" / image.parent.name / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    for label in (digits / "train").iterdir():
        (folder / "train" / label.name).mkdir(parents=True)
    return folder


def _evaluate(output: Path, data: Path, weights: Path, *, devices: int, batch_size: int, workers: int = 0) -> Finished:
    options = ("--mode", "eval", "--weights", str(weights), "--npus", str(devices), "--batch-size", str(batch_size))
    done = train(
        output, *small(*options, "--workers", str(workers)), data=data, name=f"{devices}-{batch_size}-{workers}"
    )
    assert done.code == 0, done.stdout + done.stderr
    return done


def _counts(done: Finished) -> tuple[int, int, int]:
    """Images, and how many were right at the first and within the first five answers."""
    (row,) = done.metrics("eval")
    images = row["images"]
    right = [row[name] * images / 100 for name in ("top1", "top5")]
    assert [round(count) for count in right] == pytest.approx(right, abs=1e-9)
    return images, round(right[0]), round(right[1])


def _figures(done: Finished) -> dict[str, Any]:
    (row,) = done.metrics("eval")
    return {name: row[name] for name in ("images", "top1", "top5")}


@pytest.fixture(scope="module")
def some(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _subset(digits, tmp_path_factory.mktemp("some"), IMAGES)


@pytest.fixture(scope="module")
def reference(some: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = _evaluate(tmp_path_factory.mktemp("reference"), some, weights, devices=1, batch_size=IMAGES)
    images, right, within_five = _counts(done)
    assert images == IMAGES
    assert 0 < right < within_five < images, "a figure at either end could hide a wrong count"
    return done


@pytest.mark.parametrize("case", [(1, 7, 1), (2, 5, 0), (3, 32, 0), (4, 1, 0), (5, 2, 1)])
def test_any_number_of_devices_and_any_batch_size_give_the_same_counts(
    some: Path, weights: Path, reference: Finished, tmp_path: Path, case: tuple[int, int, int]
) -> None:
    devices, batch_size, workers = case
    done = _evaluate(tmp_path, some, weights, devices=devices, batch_size=batch_size, workers=workers)
    assert _counts(done) == _counts(reference)
    assert _figures(done) == _figures(reference)
    said = [done.events("eval", rank) for rank in range(devices)]
    assert said == [said[0]] * devices, "every device says the same figures"
    assert len(said[0]) == 1


def test_devices_without_any_image_leave_the_counts_as_they_are(digits: Path, weights: Path, tmp_path: Path) -> None:
    few = _subset(digits, tmp_path / "few", 2)
    alone, crowd = (_evaluate(tmp_path, few, weights, devices=devices, batch_size=2) for devices in (1, 3))
    assert _counts(alone)[0] == 2
    assert _figures(crowd) == _figures(alone)
