"""Packed images against the folder: images per second from slow storage and from this disk, and the index at a start.

Slow storage is this disk with a wait of 5 ms in each `os.open` and `os.preadv` of the loader processes: by these calls,
and no others, either form reads an image (tests/unit/training/test_data_pack.py counts them). The index has as many
names as ImageNet, all generated, because a start reads no image.

The bars: 4 times the folder's rate where the waits decide (digits); 0.95 of it on this disk; one CPU second for the
index. Photos have no bar with waits: decoding them keeps two cores busy, so that the rate of this disk is the most that
any form can reach.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_pipeline import write_photos
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.data.arrays import write_arrays
from trainer.data.digits import write_digits
from trainer.data.index import load_datasets
from trainer.data.loader import train_batches
from trainer.data.pack import PACK_FORMAT, tar_name
from trainer.data.packing import pack_images
from trainer.data.sampler import plan_epoch
from trainer.devices.cpu import CpuDevice
from trainer.shared.config import TrainConfig
from trainer.shared.runs import PACK_INDEX

WAIT_S = 0.005
WORKERS = 4
ROUNDS, QUICK_ROUNDS = 5, 1
LOCAL_TURNS = 4
"""In a round: an epoch from this disk ends in less than a second, in which four processes start and share two cores."""
NAMES, CLASSES = 1_281_167, 1_000
SLOW_BAR, LOCAL_BAR, START_BAR_S = 4.0, 0.95, 1.0
DIGITS, PHOTOS = "digits, 32 px", "photos of 500 x 375, 331 px"
SLOW, LOCAL = "5 ms for each open and read", "this disk"


@contextlib.contextmanager
def slow_storage() -> Iterator[None]:
    """Let each open and each read of this process, and of processes that it forks, wait."""
    calls: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ("open", "preadv")}

    def slow(call: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_call(*arguments: Any, **options: Any) -> Any:
            time.sleep(WAIT_S)
            return call(*arguments, **options)

        return wait_and_call

    try:
        for name, call in calls.items():
            setattr(os, name, slow(call))
        yield
    finally:
        for name, call in calls.items():
            setattr(os, name, call)


def rate(data: Path, config: TrainConfig, *, slow: bool) -> float:
    """Return the images per second of an epoch from its second batch of each loader process on."""
    index = load_datasets(data).train
    assert index is not None
    plan = plan_epoch(len(index), world_size=1, batch_size=config.batch_size, accumulate=1, steps_limit=None)
    with slow_storage() if slow else contextlib.nullcontext():
        batches = train_batches(index, config=config, epoch=0, plan=plan, rank=0, pin_memory=False)
        images, began = 0, 0.0
        for number, batch in enumerate(batches, 1):
            if number > WORKERS:
                images += len(batch.images)
            if number == WORKERS:
                began = time.perf_counter()
        return images / (time.perf_counter() - began)


def measure(quick: bool) -> list[Figure]:
    """Return the rates of both forms, and the time in which a start reads the index."""
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        return [*_rates(folder, rounds), *_starts(folder / "names", rounds)]


def _rates(folder: Path, rounds: int) -> Iterator[Figure]:
    write_photos(folder / "photos", count=960)
    write_photos(folder / "photos", count=2, split="val")
    write_digits(folder / "digits")
    for name, images, size in (("digits", DIGITS, 32), ("photos", PHOTOS, 331)):
        pack_images(folder / name, folder / f"{name}-pack")
        config = TrainConfig(image_size=size, batch_size=16, workers=WORKERS, memory_format=CpuDevice.memory_format)
        for storage in (SLOW, LOCAL):
            forms: dict[str, list[float]] = {name: [], f"{name}-pack": []}
            for turn in range(rounds * (LOCAL_TURNS if storage == LOCAL else 1)):
                for form in sorted(forms, reverse=turn % 2 == 1):
                    forms[form].append(rate(folder / form, config, slow=storage == SLOW))
            files, packed = forms.values()
            bar = LOCAL_BAR if storage == LOCAL else SLOW_BAR if images == DIGITS else None
            yield Figure(
                f"{images}, {storage}",
                "images/s",
                Series("pack", packed),
                Series("folder", files),
                Bar(bar, "at least") if bar else None,
            )


def _starts(folder: Path, rounds: int) -> Iterator[Figure]:
    """Yield the wall and the CPU seconds in which a start reads the index of NAMES packed images."""
    _write_index(folder)
    times = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        datasets = load_datasets(folder)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    assert len(datasets.train or ()) == NAMES
    walls, cpus = (Series("pack", values) for values in zip(*times, strict=True))
    yield Figure(f"index of {NAMES:,} + 50,000 names, wall time", "s", walls)
    yield Figure(f"index of {NAMES:,} + 50,000 names, CPU time", "s", cpus, bar=Bar(START_BAR_S, of="ours"))


def _write_index(folder: Path) -> None:
    folder.mkdir()
    classes = [f"n{number:08d}" for number in range(CLASSES)]
    arrays: dict[str, Any] = {"format": np.array(PACK_FORMAT), "classes": np.array(classes, dtype=np.bytes_)}
    sizes = []
    for split, count, tars in (("train", NAMES, 36), ("val", 50_000, 2)):
        labels = np.sort(np.arange(count, dtype=np.int64) % CLASSES)
        names = [f"{classes[label]}/{classes[label]}_{number}.JPEG" for number, label in enumerate(labels.tolist())]
        arrays |= {
            f"{split}_paths": np.array(names, dtype=np.bytes_),
            f"{split}_labels": labels,
            f"{split}_firsts": np.linspace(0, count, tars, endpoint=False).astype(np.int64),
            f"{split}_checksums": np.zeros(count, dtype=np.uint32),
            **{f"{split}_{column}": np.arange(count, dtype=np.int64) for column in ("offsets", "sizes", "modified_ns")},
        }
        for number in range(tars):
            (folder / tar_name(split, number)).touch()
            sizes.append(0)
    write_arrays(folder / PACK_INDEX, arrays | {"tar_sizes": np.array(sizes)})


BENCHMARK = Benchmark(
    name="packed_data",
    title="Packed images",
    method=f"Training images per second of {WORKERS} loader processes. Photos keep two cores busy with decoding (see "
    "the floor of the data pipeline) and with the pages of shared memory that carry each batch: no storage is faster "
    "than this disk.",
    measure=measure,
    packages=("torch", "pillow", "numpy"),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
