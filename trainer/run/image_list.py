"""The list of a run's images, kept in its folder, so that a later attempt can say which files came and went.

A fingerprint alone would say that something is different, among a million files, and leave the search to the user.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.index import Datasets
from trainer.shared.files import replacing, writing

INDEX_FILE = "data_index.npz"
NAMED = 3

Paths = NDArray[np.bytes_]


def keep_index(run: Path, datasets: Datasets) -> None:
    """Write the relative paths of both splits to `run`/data_index.npz; an earlier list stays as data_index-<n>.npz.

    Raises:
        TrainerError: it cannot be written.
    """
    path = run / INDEX_FILE
    with writing(path), replacing(path) as partial:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **_splits(datasets))
        if path.exists():
            path.rename(_next_free(path))


def changes(run: Path, datasets: Datasets) -> str:
    """What came and went since the list in `run` was kept, in words: counts and the first names of each split."""
    try:
        # Opened here, because numpy leaves a file of its own open when it is damaged.
        with (run / INDEX_FILE).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            before = {split: stored[split] for split in ("train", "val")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return f"there is no list of its images to compare with ({INDEX_FILE})"
    now = _splits(datasets)
    found = [
        f"{split}/: {len(names):,} {word} ({_some(names)})"
        for split in ("train", "val")
        for word, names in (
            ("added", np.setdiff1d(now[split], before[split], assume_unique=True)),
            ("removed", np.setdiff1d(before[split], now[split], assume_unique=True)),
        )
        if len(names)
    ]
    return "; ".join(found) or "other files or labels than the checkpoint's"


def _splits(datasets: Datasets) -> dict[str, Paths]:
    train = np.array([], dtype="S1") if datasets.train is None else datasets.train.paths
    return {"train": train, "val": datasets.val.paths}


def _some(names: Paths) -> str:
    first = ", ".join(os.fsdecode(name) for name in names[:NAMED])
    return first + (", ..." if len(names) > NAMED else "")


def _next_free(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return free
