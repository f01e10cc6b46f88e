"""Images of noise in the ImageNet layout, for timed steps without training data: `sample_images.py FOLDER COUNT SIDE`.

They have the sizes and the detail of ImageNet's, so that loaders have their usual work; most are links to a few files.
It is a separate program, since the command line must not wait for numpy.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
_FILES = 64
_DETAIL = 5
"""Pixels of a patch of one colour: such a JPEG takes as many bytes as one of ImageNet, 110 KB."""


def main(words: Sequence[str] | None = None) -> int:
    """Write the images that are missing of COUNT, each at least SIDE pixels high."""
    folder, count, side = (words or sys.argv[1:])[:3]
    write_images(Path(folder), int(count), int(side))
    return 0


def write_images(folder: Path, count: int, side: int) -> None:
    """Write `count` images to train on, and one of each class to validate."""
    for number in range(count):
        name = f"{number % CLASSES}/{number}.jpg"
        if number < _FILES:
            for split in ("train", "val")[: 2 if number < CLASSES else 1]:
                _write_noise(folder / split / name, number, side)
        elif not (path := folder / "train" / name).exists():
            # By its number of the same class, since a file's links should not differ in their labels.
            os.link(folder / "train" / f"{number % CLASSES}/{number % (_FILES // CLASSES * CLASSES)}.jpg", path)


def _write_noise(path: Path, seed: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = -(-side * 8 // 7), -(-side * 3 // 2)  # of 331: 379 x 497; ImageNet's are 375 x 500 on average
    patches = np.random.default_rng(seed).integers(0, 256, (-(-height // _DETAIL), -(-width // _DETAIL), 3), np.uint8)
    image = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path, "JPEG", quality=90)
