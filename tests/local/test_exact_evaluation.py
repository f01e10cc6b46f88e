"""An evaluation's counts are those of the images, whoever counts them: any number of devices and any batch size.

Devices that get no image at all count too; a wrong count would show as another figure, since a figure is a sum of
integers over a number of images. One set of processes does all of it, each job as a worker does it: starting a process
takes longer than evaluating.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn, start_processes

from tests.local.conftest import Finished
from trainer.shared.config import Layer, TrainConfig, mode_layer, resolve
from trainer.topology.ports import free_port
from trainer.worker.run import run
from trainer.worker.task import WorkerTask

DEVICES = 5
IMAGES, FEW = 23, 2
# Images, devices, batch size, loader processes. Of two images three devices and more cannot all get one.
CASES = [
    *((IMAGES, devices, 4, 0) for devices in range(1, DEVICES + 1)),
    (IMAGES, 2, 1, 1),
    (IMAGES, 3, 32, 0),
    (IMAGES, DEVICES, 2, 1),
    (FEW, 3, 1, 0),
    (FEW, DEVICES, 2, 0),
]


def _reference(images: int) -> tuple[int, int, int, int]:
    """One device that sees all images at once."""
    return images, 1, images, 0


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


def _task(run_folder: Path, *, devices: int, **settings: Any) -> WorkerTask:
    """Rank 0's; `run_folder` is made."""
    run_folder.mkdir()
    common = {"device": "cpu", "model": "pnasnet5tiny", "aux": "none", "image_size": 32, "threads": 1}
    layers = [Layer("flag", {**common, "normalize": "half", **settings})]
    config, _ = resolve(TrainConfig, [*layers, mode_layer(layers)])
    return WorkerTask(
        config=config,
        run=run_folder,
        device="cpu",
        rank=0,
        local_rank=0,
        world_size=devices,
        local_world_size=devices,
        master_port=free_port(),
        command=(),
    )


def _start(_rank: int, tasks: Sequence[str]) -> None:
    """Start the ranks as forks of this process, which has imported all that they need and done nothing else."""
    start_processes(_work, args=(tasks,), nprocs=DEVICES, start_method="fork")


def _work(rank: int, tasks: Sequence[str]) -> None:
    """Take part, as rank `rank`, in those of the jobs that have such a rank."""
    torch.set_num_threads(1)
    alive = []
    for text in tasks:
        values = json.loads(text)
        if rank >= values["world_size"]:
            continue
        task = WorkerTask.from_json(json.dumps({**values, "rank": rank, "local_rank": rank}))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(task.master_port), GLOO_SOCKET_IFNAME="lo")
        with (task.run / f"said-{rank}").open("w") as said, contextlib.redirect_stdout(said):
            code, parts = run(task)
        assert code == 0
        alive.append(parts)
    # As a worker ends: a process group's destructor may hang.
    os._exit(0)


@pytest.fixture(scope="module")
def evaluations(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run for each case, of a network that is right now and then."""
    folder = tmp_path_factory.mktemp("evaluations")
    data = {count: _subset(digits, folder / f"{count}-images", count) for count in (IMAGES, FEW)}
    lesson = {"mode": "full", "epochs": 1, "steps": 30, "lr": 0.02, "batch_size": 6, "workers": 0}
    tasks = [_task(folder / "trained", devices=DEVICES, data_path=digits, **lesson)]
    weights = folder / "trained" / "checkpoints" / "last.safetensors"
    for case in (*CASES, *map(_reference, data)):
        images, devices, batch_size, workers = case
        settings = {"mode": "eval", "weights": weights, "batch_size": batch_size, "workers": workers}
        tasks.append(_task(folder / _name(case), devices=devices, data_path=data[images], **settings))
    spawn(_start, args=([task.to_json() for task in tasks],), nprocs=1)
    return folder


def _name(case: tuple[int, int, int, int]) -> str:
    return "-".join(map(str, case))


def _figures(evaluations: Path, case: tuple[int, int, int, int]) -> dict[str, Any]:
    """The figures that the job kept, and that each of its devices said."""
    run_folder, devices = evaluations / _name(case), case[1]
    said = "\n".join(
        f"[rank {rank} cpu:{rank} #1] {line}"
        for rank in range(devices)
        for line in (run_folder / f"said-{rank}").read_text().splitlines()
    )
    done = Finished(0, said, "", run_folder)
    events = [done.events("eval", rank) for rank in range(devices)]
    assert events == [events[0]] * devices, "every device says the same figures"
    assert len(events[0]) == 1
    (row,) = done.metrics("eval")
    return {name: row[name] for name in ("images", "top1", "top5", "loss")}


def _counts(figures: dict[str, Any]) -> tuple[int, int, int]:
    """Images, and how many were right at the first and within the first five answers."""
    images = figures["images"]
    right = [figures[name] * images / 100 for name in ("top1", "top5")]
    assert [round(count) for count in right] == pytest.approx(right, abs=1e-9)
    return images, round(right[0]), round(right[1])


def test_the_reference_would_show_a_wrong_count(evaluations: Path) -> None:
    images, right, within_five = _counts(_figures(evaluations, _reference(IMAGES)))
    assert images == IMAGES
    assert 0 < right < within_five < images, "a figure at either end could hide a wrong count"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_any_number_of_devices_and_any_batch_size_give_the_same_counts(
    evaluations: Path, case: tuple[int, int, int, int]
) -> None:
    figures, reference = _figures(evaluations, case), _figures(evaluations, _reference(case[0]))
    assert _counts(figures)[0] == case[0]
    # The mean loss is a sum of floats, whose order differs; one image more or less would still be seen in it.
    assert figures.pop("loss") == pytest.approx(reference.pop("loss"), rel=1e-5)
    assert figures == reference
