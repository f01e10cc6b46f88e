"""Images per second of one core, from JPEG files to batches, against torchvision's v2 transforms in one run.

The peers are v2 as torchvision's reference uses it, with its faster decoder on tensors and with Pillow: both end with
normalised float32 images, in the loader. Ours ends with uint8 images, since the device normalises them. Two more
comparisons separate this difference: the same work in v2 and ours, both up to uint8 and both up to float32. The floor
is the rate of reading and decoding: all else could only become free. CPU time instead of wall time, because other
programs on the machine hardly change it.
"""

import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.data.augment import TrainTransform, sample_key
from trainer.data.content import read_image
from trainer.data.decode import decode_content
from trainer.data.digits import write_digits
from trainer.data.index import load_split
from trainer.data.loader import ImageBatch, network_input, train_batches
from trainer.data.sampler import plan_epoch
from trainer.devices.cpu import CpuDevice
from trainer.devices.npu import NpuDevice
from trainer.model.weight_files import NORMALIZATIONS
from trainer.shared.config import TrainConfig

ROUNDS, QUICK_ROUNDS = 7, 2
BAR = Bar(1.3, "at least")
PHOTO, LARGE_PHOTO = (500, 375), (2_000, 1_500)
OURS, OURS_NCHW, OURS_FLOAT = "ours", "ours, NCHW as for an NPU", "ours, normalised on the CPU"
DECODED = "only our decoding"
V2, V2_UINT8, V2_PILLOW = "v2, decode_jpeg", "v2, decode_jpeg, up to uint8", "v2, Pillow"

Epoch = Callable[[], Iterable[Tensor]]


def measure(quick: bool) -> list[Figure]:
    """Return our rate and the peers' for each data set, images per CPU second."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The .*image decod", UserWarning)  # torchvision's moves to torchcodec
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", count=160)
        write_photos(folder / "large", count=32, size=LARGE_PHOTO)
        write_digits(folder / "digits")
        photos = TrainConfig(image_size=331)
        digits = TrainConfig(image_size=32, augment="affine", crop_scale=0.8, flip=0.0, normalize="half")
        return [
            *_figures("photos 500 x 375 -> 331", folder / "photos", photos, rounds, BAR),
            *_figures("photos 2,000 x 1,500 -> 331", folder / "large", photos, rounds, BAR),
            *_figures("digits 32 -> 32, small affine", folder / "digits", digits, rounds),
        ]


def _figures(name: str, data: Path, config: TrainConfig, rounds: int, bar: Bar | None = None) -> list[Figure]:
    config = config.model_copy(update={"memory_format": CpuDevice.memory_format})
    for_npu = config.model_copy(update={"memory_format": NpuDevice.memory_format})
    epochs: Mapping[str, Epoch] = {
        OURS: _ours(data, config, lambda batch: batch.images),
        OURS_NCHW: _ours(data, for_npu, lambda batch: batch.images),
        V2: _v2(data, config),
        V2_PILLOW: _v2(data, config, pillow=True),
        V2_UINT8: _v2(data, config, normalized=False),
        OURS_FLOAT: _ours(data, config, lambda batch: network_input(batch, config)),
        DECODED: _decoded(data, config),
    }
    turns: dict[str, list[float]] = {series: [] for series in epochs}
    for _ in range(rounds + 1):
        for series, epoch in epochs.items():
            turns[series].append(_rate(epoch))
    # The first round fills the caches.
    rates = {series: Series(series, values[1:]) for series, values in turns.items()}
    return [
        Figure(f"{name}, {what}", "images/s", rates[ours], rates[peer], held)
        for ours, peer, what, held in (
            (OURS, V2, "its whole recipe", bar),
            (OURS_NCHW, V2, "its whole recipe", None),
            (OURS, V2_PILLOW, "its whole recipe", None),
            (OURS, V2_UINT8, "the same work", None),
            (OURS_FLOAT, V2, "the same work", None),
            (OURS, DECODED, "its floor", None),
        )
    ]


def _rate(epoch: Epoch) -> float:
    start = time.process_time()
    images = sum(len(batch) for batch in epoch())
    return images / (time.process_time() - start)


def _ours(data: Path, config: TrainConfig, result: Callable[[ImageBatch], Tensor]) -> Epoch:
    index = load_split(data, "train")
    plan = plan_epoch(len(index), world_size=1, batch_size=config.batch_size, accumulate=1, steps_limit=None)
    config = config.model_copy(update={"workers": 0})

    def epoch() -> Iterable[Tensor]:
        return map(result, train_batches(index, config=config, epoch=0, plan=plan, rank=0, pin_memory=False))

    return epoch


def _decoded(data: Path, config: TrainConfig) -> Epoch:
    """Return an epoch that only reads and decodes, as ours does for its crops."""
    index, transform = load_split(data, "train"), TrainTransform(config)

    def decode(sample: int) -> Tensor:
        key = sample_key(seed=config.seed, epoch=0, sample=sample)
        return decode_content(read_image(index.place(sample)), partial(transform.reduction, key))[None]

    return lambda: map(decode, range(len(index)))


def _v2(data: Path, config: TrainConfig, *, pillow: bool = False, normalized: bool = True) -> Epoch:
    affine = v2.RandomAffine(10, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, scale=(config.crop_scale, 1.0)),
            *([affine] if config.augment == "affine" else []),
            v2.RandomHorizontalFlip(config.flip),
            *([v2.PILToTensor()] if pillow else []),
            *([v2.ToDtype(torch.float32, scale=True)] if normalized else []),
            *([v2.Normalize(*NORMALIZATIONS[config.normalize])] if normalized else []),
        ]
    )
    read = {} if pillow else {"loader": lambda path: decode_jpeg(read_file(path), ImageReadMode.RGB)}
    images = ImageFolder(str(data / "train"), transform, **read)
    loader = DataLoader(images, batch_size=config.batch_size, shuffle=True, drop_last=True)
    return lambda: (batch for batch, _ in loader)


def write_photos(to: Path, count: int, split: str = "train", size: tuple[int, int] = PHOTO) -> None:
    """Write JPEGs made of random crops of two real photos, by default of ImageNet's median size and about 110 KB.

    A larger size is an enlarged crop, which has about the bits per pixel of a camera's photo.
    """
    photos = load_sample_images().images
    draw = np.random.default_rng(0)
    (to / split / "photo").mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = draw.integers(0, photo.shape[0] - 375), draw.integers(0, photo.shape[1] - 500)
        image = Image.fromarray(photo[top : top + 375, left : left + 500])
        encoded = io.BytesIO()
        (image if size == PHOTO else image.resize(size, Image.Resampling.BICUBIC)).save(encoded, "JPEG", quality=95)
        (to / split / "photo" / f"{number:04d}.jpg").write_bytes(encoded.getvalue())


BENCHMARK = Benchmark(
    name="data_pipeline",
    title="Data pipeline",
    method="Training images per CPU second of one core, one thread, from JPEG files to batches of 32. v2 has the "
    "order of transforms of torchvision's reference, up to normalised float32 images. Ours leaves the normalisation to "
    "the device, and its batches have the network's layout: NHWC on this machine. A JPEG decoder divides "
    "the sides of a large photo by 2 or 4 where its crop has the pixels.",
    measure=measure,
    packages=("torch", "torchvision", "pillow", "numpy"),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
