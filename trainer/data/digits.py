"""A real data set without a download: scikit-learn's 1,797 handwritten digits as JPEGs in the ImageNet folder layout.

With it the main job can be tried, and tested, on any machine. The split is stratified and always the same: 1,437 digits
to train on, 360 to evaluate.
"""

import importlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.archives import write_image
from trainer.shared.errors import UsageError

COUNT = 1797
HELD_OUT = 360
_SIDE = 32
_NAME = "digit_{:04d}.jpg"


def write_digits(to: Path) -> int:
    """Write the digits below `to`. Return how many files were missing and are written now.

    Raises:
        UsageError: `to` holds other data or cannot be written, or scikit-learn is missing.
    """
    numbers = {_NAME.format(number): number for number in range(COUNT)}
    missing = set(numbers)
    for path in sorted(path for split in ("train", "val") for path in (to / split).rglob("[!.]*")):
        if path.name not in numbers and not path.is_dir():
            raise UsageError(f"{path}: not one of the digits, {to} holds other data; give --to an empty folder")
        missing.discard(path.name)
    digits = _digits() if missing else []
    for name in sorted(missing):
        split, label, pixels = digits[numbers[name]]
        write_image(to / split / str(label) / name, _jpeg(pixels))
    return len(missing)


def _digits() -> list[tuple[str, int, NDArray[np.float64]]]:
    """Return split, label and pixels (8, 8) in 0..16 of each digit."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
        selection = importlib.import_module("sklearn.model_selection")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("sklearn"):
            raise
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: pip install 'pnas[demo]'"
        ) from None
    digits = datasets.load_digits()
    _, held_out = selection.train_test_split(range(COUNT), test_size=HELD_OUT, stratify=digits.target, random_state=0)
    in_val = set(held_out)
    return [
        ("val" if number in in_val else "train", int(digits.target[number]), digits.images[number])
        for number in range(COUNT)
    ]


def _jpeg(pixels: NDArray[np.float64]) -> bytes:
    # Bicubic keeps the strokes round; quality 95 keeps JPEG's ringing out of an image of 16 blocks.
    grey = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    image = grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert("RGB")
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95)
    return encoded.getvalue()
