"""An evaluation counts each image once, with any number of devices and any batch size.

A wrong count would change a figure, because a figure is a sum of integers divided by the number of images. Some devices
get no image. One set of processes runs all jobs, each as a worker would: a new process takes longer than an evaluation.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn, start_processes

from tests.local.conftest import TrainerResult
from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.layers import resolve
from trainer.shared.config.train import mode_layer
from trainer.topology.ports import listen_on_free_port, port_of
from trainer.worker.run import run_worker
from trainer.worker.task import WorkerTask

DEVICES = 5
IMAGES, FEW = 23, 2
# Images, devices, batch size, loader processes. With two images, one of three devices gets none.
CASES = [
    *((IMAGES, devices, 4, 0) for devices in range(1, DEVICES + 1)),
    (IMAGES, 2, 1, 1),
    (IMAGES, 3, 32, 0),
    (IMAGES, DEVICES, 2, 1),
    (FEW, 3, 1, 0),
    (FEW, DEVICES, 2, 0),
]


def _reference(images: int) -> tuple[int, int, int, int]:
    """Return the case of one device that sees all images at once."""
    return images, 1, images, 0


def _subset(digits: Path, folder: Path, count: int) -> Path:
    """Write `count` of the digits to evaluate on, with the folders of all classes; return the folder."""
    images = sorted((digits / "val").glob("*/*"), key=lambda path: (path.name, path.parent.name))
    for image in images[:: len(images) // count][:count]:
        target = folder / "val" / image.parent.name / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    for label in (digits / "train").iterdir():
        (folder / "train" / label.name).mkdir(parents=True)
    return folder


def _task(run_folder: Path, *, devices: int, **settings: Any) -> WorkerTask:
    """Return the task of rank 0; create `run_folder`."""
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
        command=(),
    )


def _start(_rank: int, tasks: Sequence[str]) -> None:
    """Start the ranks as forks of this process, which has done nothing but import what they need.

    It holds a port for each job from here on: a rank that leaves jobs out comes to its next one long before the others,
    and must find no other store there.
    """
    listeners = [listen_on_free_port() for _ in tasks]
    start_processes(_work, args=(tasks, listeners), nprocs=DEVICES, start_method="fork")


def _work(rank: int, tasks: Sequence[str], listeners: Sequence[socket.socket]) -> None:
    """Take part as rank `rank` in each job that has this rank."""
    torch.set_num_threads(1)
    references = []
    for text, listener in zip(tasks, listeners, strict=True):
        values = json.loads(text)
        if rank >= values["world_size"]:
            continue
        place = {"rank": rank, "local_rank": rank, "master_port": port_of(listener)}
        if rank == 0 and values["world_size"] > 1:
            place["listener"] = listener.detach()
        task = WorkerTask.from_json(json.dumps({**values, **place}))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(task.master_port), GLOO_SOCKET_IFNAME="lo")
        with (task.run / f"output-{rank}").open("w") as output, contextlib.redirect_stdout(output):
            code, parts = run_worker(task, SimpleQueue())
        assert code == 0
        references.append(parts)  # the destructor of a process group may hang
    # End as a worker does, without destructors.
    os._exit(0)


@pytest.fixture(scope="module")
def evaluations(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run each case with a network that answers some images right; return a folder with the runs."""
    folder = tmp_path_factory.mktemp("evaluations")
    data = {count: _subset(digits, folder / f"{count}-images", count) for count in (IMAGES, FEW)}
    training = {"mode": "full", "epochs": 1, "steps": 30, "lr": 0.02, "batch_size": 6, "workers": 0}
    tasks = [_task(folder / "trained", devices=DEVICES, data_path=digits, **training)]
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
    """Return the figures in the job's metrics; check that each device printed the same ones."""
    run_folder, devices = evaluations / _name(case), case[1]
    text = "\n".join(
        f"[rank {rank} cpu:{rank} #1] {line}"
        for rank in range(devices)
        for line in (run_folder / f"output-{rank}").read_text().splitlines()
    )
    result = TrainerResult(0, text, "", run_folder)
    events = [result.events("eval", rank) for rank in range(devices)]
    assert events == [events[0]] * devices, "every device prints the same figures"
    assert len(events[0]) == 1
    (row,) = result.metrics("eval")
    return {name: row[name] for name in ("images", "top1", "top5", "loss")}


def _counts(figures: dict[str, Any]) -> tuple[int, int, int]:
    """Return the number of images, and how many are right with the first and within the first five answers."""
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
    # The mean loss is a sum of floats in another order; even so, it would show one image more or less.
    assert figures.pop("loss") == pytest.approx(reference.pop("loss"), rel=1e-5)
    assert figures == reference
