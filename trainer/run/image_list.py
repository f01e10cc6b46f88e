"""The list of a run's images in its folder, so that a later attempt can say which files came and went.

A fingerprint could only say that a million files differ somewhere, and leave the search to the user.
"""

import itertools
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.arrays import read_arrays, write_arrays
from trainer.data.index import Datasets
from trainer.shared.files import replacing, writing

INDEX_FILE = "data_index.npz"
_NAMES_SHOWN = 3

Paths = NDArray[np.bytes_]


def keep_image_list(run: Path, datasets: Datasets, *, changed: bool) -> None:
    """Write the relative paths of both splits to `run`/data_index.npz, unless it has a list that is still right.

    Args:
        changed: The data has changed since the list there was written; that list stays as data_index-<n>.npz.

    Raises:
        TrainerError: The list cannot be written.
    """
    path = run / INDEX_FILE
    if path.exists() and not changed:
        return
    with writing(path), replacing(path) as partial:
        write_arrays(partial, _splits(datasets), compress=True)
        if path.exists():
            free = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
            path.rename(next(name for name in free if not name.exists()))


def describe_changes(run: Path, datasets: Datasets) -> str:
    """Return what came and went since the list in `run` was written: counts and the first names of each split."""
    before = read_arrays(run / INDEX_FILE)
    if before is None:
        return f"there is no list of its images to compare with ({INDEX_FILE})"
    after = _splits(datasets)
    changes = [
        f"{split}/: {len(names):,} {word} ({_first_names(names)})"
        for split in ("train", "val")
        for word, names in (
            ("added", np.setdiff1d(after[split], before[split], assume_unique=True)),
            ("removed", np.setdiff1d(before[split], after[split], assume_unique=True)),
        )
        if len(names)
    ]
    return "; ".join(changes) or "other files or labels than the checkpoint's"


def _splits(datasets: Datasets) -> dict[str, Paths]:
    train = np.array([], dtype="S1") if datasets.train is None else datasets.train.paths
    return {"train": train, "val": datasets.val.paths}


def _first_names(names: Paths) -> str:
    first = ", ".join(os.fsdecode(name) for name in names[:_NAMES_SHOWN])
    return first + (", ..." if len(names) > _NAMES_SHOWN else "")
