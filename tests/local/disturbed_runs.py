"""Real runs whose steps mostly wait, by a plan that is drawn from a seed: what a forecast is tested on."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.local.conftest import small_options, train
from tests.local.forked_trainer import FIRST_MODULE
from tests.unit.training.simulated_runs import SAVE_EVERY_S, DisturbedRun, Forecast, Size
from trainer.shared.errors import RESUMABLE
from trainer.training.time_left import TimeLeft

SEED, FOLDER, SHORTEST = "PNAS_TEST_SEED", "PNAS_TEST_FOLDER", "PNAS_TEST_SHORTEST_S"
_LEAST_IMAGES = 10
"""One of each class."""


def drawn_run(seed: int) -> DisturbedRun:
    """Return the run of this seed; the variable SHORTEST has the seconds of the shortest one."""
    run = DisturbedRun(seed, _size())
    run.images = max(run.images, _LEAST_IMAGES)
    return run


def _size() -> Size:
    shortest_s = float(os.environ[SHORTEST])
    # A step takes a second or longer, of which the network's arithmetic is a small part.
    steps = round(1.1 * shortest_s)
    shapes = [(epochs, max(1, steps // epochs)) for epochs in (1, 3, 6, 12)]
    return Size(shapes=shapes, batches=(2,), steps_s=(shortest_s, 2 * shortest_s))


def real_forecast(seed: int, digits: Path, folder: Path, *, at: float) -> Forecast:
    """Do the run of this seed. Return its forecast after the share `at` of its time, and the time that was then left.

    Only time in which a trainer works counts. Its start does not: the imports would take as large a share of a run of
    minutes as half an hour takes of a run of a day.
    """
    folder.mkdir()
    run = drawn_run(seed)
    data = _few_images(digits, folder / "data", run.images)
    every = f"{SAVE_EVERY_S * _size().scale:g}s"
    options = f"--epochs {run.epochs} --steps {run.steps} --batch-size {run.images_per_step} --lr 1e-6".split()
    options += f"--log-interval 1 --checkpoint-every {every} --resume auto".split()
    environ = {FIRST_MODULE: "tests.local.disturbed_worker", SEED: str(seed), FOLDER: str(folder)}
    train(folder, "--version")  # has torch imported by the process that forks trainers
    ends = []
    for _ in (*run.stops, None):
        result = train(folder, *small_options(*options), data=data, environ=environ)
        ends.append(time.time())
        if result.code == 0:
            break
        assert result.code in (RESUMABLE, -9), (seed, result.stdout, result.stderr)
    assert result.code == 0, (seed, result.stdout, result.stderr)
    begins = map(float, (folder / "begins").read_text().split())
    attempts = list(zip(begins, ends, strict=True))
    whole_s = sum(end - begin for begin, end in attempts)
    forecasts = map(json.loads, (folder / "forecasts").read_text().splitlines())
    for moment, seconds, low_s, high_s in forecasts:
        worked_s = sum(max(0.0, min(moment, end) - begin) for begin, end in attempts)
        if worked_s >= at * whole_s:
            return Forecast(TimeLeft(100 * at, seconds, low_s, high_s), whole_s - worked_s)
    raise AssertionError("the run has ended without a forecast")


def _few_images(digits: Path, folder: Path, count: int) -> Path:
    """Return a folder with all images to train on and `count` to validate, of each class the same number."""
    shutil.copytree(digits / "train", folder / "train", copy_function=os.link)
    for label, image in list(_one_of_each_class_in_turn(digits / "val"))[:count]:
        (folder / "val" / label).mkdir(parents=True, exist_ok=True)
        os.link(image, folder / "val" / label / image.name)
    return folder


def _one_of_each_class_in_turn(val: Path) -> Iterator[tuple[str, Path]]:
    images = [(number, label.name, image) for label in val.iterdir() for number, image in enumerate(label.iterdir())]
    return ((label, image) for _, label, image in sorted(images))
