"""Images per second of one core, from JPEG file to uint8 batch, against torchvision's Pillow pipeline in one run.

The peer is the pipeline of the seed and of torchvision's reference: Pillow decode, crop, flip, `ToTensor`, collate to
float32. It measures CPU time instead of wall time, because other programs on the machine hardly change it.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.report import Benchmark, Figure, Series, run
from trainer.data.digits import write_digits
from trainer.data.index import load_split
from trainer.data.loader import train_batches
from trainer.data.sampler import plan_epoch
from trainer.shared.config import TrainConfig

ROUNDS, QUICK_ROUNDS = 5, 1
BATCH = 32


def measure(quick: bool) -> list[Figure]:
    """Return our rate and the peer's for each data set, images per CPU second."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return _rates(Path(folder), QUICK_ROUNDS if quick else ROUNDS)


def _rates(folder: Path, rounds: int) -> list[Figure]:
    write_photos(folder / "photos", count=160)
    write_digits(folder / "digits")
    cases = {
        "photos 500 x 375 -> 331": (folder / "photos", TrainConfig(image_size=331)),
        "digits 32 -> 32, small affine": (
            folder / "digits",
            TrainConfig(image_size=32, augment="affine", crop_scale=0.8, flip=0.0),
        ),
    }
    figures = []
    for name, (data, config) in cases.items():
        pairs = [(_rate(_ours(data, config)), _rate(_peer(data, config))) for _ in range(rounds)]
        ours, theirs = zip(*pairs, strict=True)
        figures.append(Figure(name, "images/s", Series("ours", ours), Series("torchvision with Pillow", theirs)))
    return figures


def _rate(epoch: Callable[[], Iterable[Tensor]]) -> float:
    start = time.process_time()
    images = sum(len(batch) for batch in epoch())
    return images / (time.process_time() - start)


def _ours(data: Path, config: TrainConfig) -> Callable[[], Iterable[Tensor]]:
    index = load_split(data, "train")
    plan = plan_epoch(len(index), world_size=1, batch_size=config.batch_size, accumulate=1, steps_limit=None)
    config = config.model_copy(update={"workers": 0})
    batches = train_batches(index, config=config, epoch=0, plan=plan, rank=0, pin_memory=False)
    return lambda: (batch.images for batch in batches)


def _peer(data: Path, config: TrainConfig) -> Callable[[], Iterable[Tensor]]:
    affine = v2.RandomAffine(10, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    augment = [affine] if config.augment == "affine" else []
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, scale=(config.crop_scale, 1.0)),
            *augment,
            v2.RandomHorizontalFlip(config.flip),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    loader = DataLoader(ImageFolder(str(data / "train"), transform), batch_size=BATCH, shuffle=True, drop_last=True)
    return lambda: (images for images, _ in loader)


def write_photos(to: Path, count: int, split: str = "train") -> None:
    """Write photos of ImageNet's median size, 500 x 375 and about 110 KB: random crops of two real photos."""
    photos = load_sample_images().images
    draw = np.random.default_rng(0)
    (to / split / "photo").mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = draw.integers(0, photo.shape[0] - 375), draw.integers(0, photo.shape[1] - 500)
        encoded = io.BytesIO()
        Image.fromarray(photo[top : top + 375, left : left + 500]).save(encoded, "JPEG", quality=95)
        (to / split / "photo" / f"{number:04d}.jpg").write_bytes(encoded.getvalue())


BENCHMARK = Benchmark(
    name="data_pipeline",
    title="Data pipeline",
    method=f"Training images per CPU second of one core, from JPEG file to batch, batch {BATCH}.",
    measure=measure,
    packages=("torch", "torchvision", "pillow", "numpy"),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
