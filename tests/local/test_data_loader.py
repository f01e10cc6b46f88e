"""The loader with real processes: the same bits for any number of processes and devices, and one line for a failure."""

import dataclasses
import errno
import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.augment import TrainTransform, sample_key
from trainer.data.bad_images import BadImage, BadImageError, BadImages
from trainer.data.decode import decode_image
from trainer.data.index import ImageIndex, load_split
from trainer.data.loader import ImageBatch, eval_batches, to_device, train_batches
from trainer.data.processes import start_worker
from trainer.data.sampler import plan_epoch
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError, UsageError

CONFIG = TrainConfig(image_size=16, batch_size=4, seed=7, augment="trivial")
N = 45


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    data = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for number in range(N):
        path = data / "train" / "abc"[number % 3] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return load_split(data, "train")


def train(
    images: ImageIndex,
    *,
    config: TrainConfig = CONFIG,
    epoch: int = 1,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    steps: int | None = None,
    bad_images: BadImages | None = None,
) -> Iterator[ImageBatch]:
    plan = plan_epoch(
        len(images),
        world_size=world_size,
        batch_size=config.batch_size,
        accumulate=1,
        steps_limit=steps,
        done_images=start_step * world_size * config.batch_size,
    )
    return train_batches(
        images,
        config=config.model_copy(update={"workers": workers}),
        epoch=epoch,
        plan=plan,
        rank=rank,
        pin_memory=False,
        bad_images=bad_images,
    )


def samples(batches: list[ImageBatch]) -> list[tuple[int, int, bytes]]:
    """Return index, label and pixels of each image."""
    return [
        (int(index), int(label), image.numpy().tobytes())
        for batch in batches
        for image, label, index in zip(*batch, strict=True)
    ]


@pytest.fixture(scope="module")
def reference(images: ImageIndex) -> list[tuple[int, int, bytes]]:
    return samples(list(train(images)))


def test_a_batch_has_the_documented_types_and_shapes(images: ImageIndex) -> None:
    batch = next(train(images))
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in batch] == [
        (torch.uint8, (4, 3, 16, 16)),
        (torch.int64, (4,)),
        (torch.int64, (4,)),
    ]
    assert torch.equal(batch.labels, torch.from_numpy(images.labels)[batch.indices])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_networks_memory_format(
    images: ImageIndex, reference: list[tuple[int, int, bytes]], workers: int
) -> None:
    batches = list(train(images, config=CONFIG.model_copy(update={"memory_format": "nhwc"}), workers=workers))
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert samples(batches) == reference


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_samples_do_not_depend_on_the_number_of_loader_processes(
    images: ImageIndex, reference: list[tuple[int, int, bytes]], workers: int
) -> None:
    assert samples(list(train(images, workers=workers))) == reference
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (4, 1)])
def test_samples_do_not_depend_on_the_number_of_devices(
    images: ImageIndex, reference: list[tuple[int, int, bytes]], world_size: int, batch_size: int
) -> None:
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    ranks = [list(train(images, config=config, rank=rank, world_size=world_size)) for rank in range(world_size)]
    steps = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert samples(steps) == reference


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_repeats_and_skips_no_image(
    images: ImageIndex, reference: list[tuple[int, int, bytes]], workers: int
) -> None:
    assert samples(list(train(images, start_step=5, workers=workers))) == reference[20:]


def test_steps_limit_the_epoch_counted_from_its_start(
    images: ImageIndex, reference: list[tuple[int, int, bytes]]
) -> None:
    assert samples(list(train(images, steps=3))) == reference[:12]
    assert samples(list(train(images, steps=3, start_step=1))) == reference[4:12]
    assert list(train(images, steps=3, start_step=3)) == []


def test_another_epoch_augments_the_same_images_differently(images: ImageIndex) -> None:
    # Without TrivialAugment: its strongest brightness makes some images all black, and so equal.
    config = CONFIG.model_copy(update={"augment": "none"})
    earlier, later = (
        {index: pixels for index, _, pixels in samples(list(train(images, config=config, epoch=epoch)))}
        for epoch in (1, 2)
    )
    assert all(earlier[index] != later[index] for index in earlier.keys() & later.keys())


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_does_not_change_the_models_random_numbers(images: ImageIndex, workers: int) -> None:
    torch.manual_seed(3)
    reference = torch.rand(4)
    torch.manual_seed(3)
    list(train(images, workers=workers))
    assert torch.equal(torch.rand(4), reference)


def evaluate(
    images: ImageIndex,
    *,
    config: TrainConfig = CONFIG,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    bad_images: BadImages | None = None,
) -> Iterator[ImageBatch]:
    return eval_batches(
        images,
        config=config.model_copy(update={"workers": workers}),
        rank=rank,
        world_size=world_size,
        pin_memory=False,
        bad_images=bad_images,
    )


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (3, 1), (50, 0)])
def test_evaluation_counts_every_image_once(images: ImageIndex, world_size: int, workers: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluate(images, rank=rank, world_size=world_size, workers=workers)
    ]
    assert torch.equal(torch.cat([batch.indices for batch in batches]), torch.arange(N))


def test_a_batch_larger_than_the_data_is_refused_before_a_process_starts(images: ImageIndex) -> None:
    with pytest.raises(UsageError, match="more than the 45 training images"):
        train(images, world_size=12)


def damage(images: ImageIndex, folder: Path, *samples: int) -> tuple[ImageIndex, dict[int, str]]:
    """Return `images` with truncated copies in place of some samples, and the paths of these copies."""
    bad = {sample: folder / f"bad-{sample}.jpg" for sample in samples}
    paths = images.paths.astype("S256")
    for sample, path in bad.items():
        path.write_bytes(images.path(sample).read_bytes()[:300])
        paths[sample] = os.fsencode(path)
    return dataclasses.replace(images, paths=paths), {sample: str(path) for sample, path in bad.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_gives_one_line_and_no_traceback(
    images: ImageIndex, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged, bad = damage(images, tmp_path, 11)
    with pytest.raises(BadImageError) as error:
        list(train(damaged, workers=workers))
    assert str(error.value).startswith(f"{bad[11]}: truncated")
    with pytest.raises(BadImageError, match=bad[11]):
        list(evaluate(damaged, workers=workers))
    assert capfd.readouterr().err == ""


SKIP = CONFIG.model_copy(update={"on_bad_image": "skip", "max_bad_images": 0.1, "augment": "none"})
TRUNCATED = "truncated, the end of the file is missing"


def test_the_next_readable_image_takes_the_place_and_the_random_draws_of_a_bad_one(
    images: ImageIndex, tmp_path: Path
) -> None:
    bad_images = BadImages()
    damaged, bad = damage(images, tmp_path, 11, 12, 44)
    substituted = samples(list(train(damaged, config=SKIP, bad_images=bad_images)))
    whole = samples(list(train(images, config=SKIP)))
    order = [index for index, _, _ in whole]
    replacements = {11: 13, 12: 13, 44: 0}
    assert [index for index, _, _ in substituted] == [replacements.get(index, index) for index in order]
    assert [label for _, label, _ in substituted] == [int(images.labels[index]) for index, _, _ in substituted]
    transform = TrainTransform(SKIP)
    for sample, (index, _, shown) in zip(order, substituted, strict=True):
        key = sample_key(seed=SKIP.seed, epoch=1, sample=sample)
        assert shown == transform(decode_image(images.path(index)), key).numpy().tobytes()
    assert [new for new in substituted if new in whole] == [old for old in whole if old[0] not in replacements]
    assert sorted(bad_images.take_new(), key=lambda image: image.sample) == [
        BadImage(path, TRUNCATED, "train", sample, replacements[sample])
        for sample, path in bad.items()
        if sample in order or sample == 12
    ]
    assert bad_images.take_new() == []


@pytest.mark.parametrize(("workers", "world_size", "start_step"), [(2, 1, 0), (0, 2, 0), (3, 1, 4)])
def test_only_the_data_decides_what_replaces_a_bad_image(
    images: ImageIndex, tmp_path: Path, workers: int, world_size: int, start_step: int
) -> None:
    damaged, _ = damage(images, tmp_path, *range(20, 24))
    config = SKIP.model_copy(update={"augment": "trivial"})
    reference = samples(list(train(damaged, config=config)))
    share = config.model_copy(update={"batch_size": config.batch_size // world_size})
    ranks = [
        list(train(damaged, config=share, rank=rank, world_size=world_size, workers=workers, start_step=start_step))
        for rank in range(world_size)
    ]
    steps = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert samples(steps) == reference[start_step * config.batch_size :]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_images_out_and_counts_them_each_time(
    images: ImageIndex, tmp_path: Path, workers: int
) -> None:
    bad_images = BadImages()
    # The whole first batch of four, and the one image of the last batch.
    damaged, bad = damage(images, tmp_path, 0, 1, 2, 3, 9, 44)
    for reported in (list(bad), []):
        batches = list(evaluate(damaged, workers=workers, config=SKIP, bad_images=bad_images))
        assert torch.cat([batch.indices for batch in batches]).tolist() == [n for n in range(N) if n not in bad]
        assert [len(column) for batch in batches for column in batch] == [4] * 3 + [3] * 3 + [4] * 24
        assert [(image.sample, image.path, image.replaced_by) for image in bad_images.take_new()] == [
            (sample, bad[sample], None) for sample in reported
        ]
        assert bad_images.take_left_out() == len(bad)
    assert bad_images.take_left_out() == 0


@pytest.mark.parametrize(("share", "count"), [(0.1, 5), (1.0, N)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_without_readable_images_ends_the_search(
    images: ImageIndex, tmp_path: Path, workers: int, share: float, count: int
) -> None:
    damaged, _ = damage(images, tmp_path, *range(N))
    with pytest.raises(TrainerError, match=f": {count} images in a row cannot be decoded, from .*truncated") as error:
        list(train(damaged, config=SKIP.model_copy(update={"max_bad_images": share}), workers=workers))
    assert "\n" not in str(error.value)


def test_a_killed_loader_process_gives_one_line_that_says_what_to_lower(
    images: ImageIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = train(images, config=CONFIG.model_copy(update={"batch_size": 1}), workers=1)
    next(batches)
    (loader,) = (child.pid for child in multiprocessing.active_children())
    assert loader is not None
    os.kill(loader, signal.SIGKILL)
    # The training process notices the death when it asks for the next batch, and not in the middle of a step.
    os.waitid(os.P_PID, loader, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TrainerError, match=r"a loader process died.* lower --workers") as error:
        list(batches)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def refuse(error: Exception) -> Callable[..., NoReturn]:
    def raise_it(*_values: object) -> NoReturn:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)",
            "/dev/shm has no r",
        ),
        ("unable to open shared memory object </torch_7>: Too many open files (24)", "too many open files: allow more"),
    ],
)
def test_batches_without_shared_memory_are_the_same_and_cost_one_warning(
    images: ImageIndex,
    reference: list[tuple[int, int, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *,
    text: str,
    words: str,
) -> None:
    monkeypatch.setattr("torch.UntypedStorage._share_fd_cpu_", refuse(RuntimeError(text)))
    for _ in range(2):
        assert samples(list(train(images, workers=2))) == reference
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f'warning text="{words}')


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EROFS, "/dev/shm cannot take their semaphores: mount an emptyDir"),
        (errno.ENOSPC, "/dev/shm cannot take their semaphores: mount an emptyDir"),
        (errno.ENOENT, "/dev/shm cannot take their semaphores: mount an emptyDir"),
        (errno.EMFILE, "allow more open files (ulimit -n)"),
        (errno.EAGAIN, "allow more processes (ulimit -u"),
        (errno.ENOMEM, "allow more memory (ulimit -v"),
    ],
)
def test_a_machine_that_cannot_start_a_loader_process_gives_one_line(
    images: ImageIndex, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    monkeypatch.setattr("torch.multiprocessing.Queue", refuse(OSError(code, os.strerror(code))))
    with pytest.raises(TrainerError, match=re.escape(f"loader processes cannot start ({os.strerror(code)}): {advice}")):
        list(train(images, workers=2))
    assert len(list(train(images, workers=0))) > 0


@pytest.fixture
def limit_open_files() -> Iterator[Callable[[int], None]]:
    """Let a test limit how many more files this process can open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda more: resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + more, before[1])
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_open_files_are_one_line_at_the_start_and_later(
    images: ImageIndex, limit_open_files: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    limit_open_files(20)
    with pytest.raises(TrainerError, match=r"open files are too few for 2 loader processes: allow more open files"):
        list(train(images, workers=2))
    limit_open_files(400)
    batches = train(images, workers=2)
    next(batches)
    limit_open_files(0)
    with pytest.raises(TrainerError, match="too many open files to receive images from loader processes: allow more"):
        list(batches)
    assert "Traceback" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("error", "printed"), [(BrokenPipeError(), 0), (ConnectionResetError(), 0), (KeyError(), 1)])
def test_a_loaders_thread_does_not_report_that_the_training_process_is_gone(
    error: Exception, printed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("signal.signal", "torch.set_num_threads"):  # they are for a loader process, not for this one
        monkeypatch.setattr(f"trainer.data.processes.{name}", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    start_worker(0)
    sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err.count(type(error).__name__) == printed


def test_loader_processes_leave_ctrl_c_to_the_training_process(
    images: ImageIndex, reference: list[tuple[int, int, bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    batches = train(images, workers=2)
    first = next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    assert samples([first, *batches]) == reference
    assert capfd.readouterr().err == ""


def report_signals(answers: Connection) -> None:
    start_worker(0)
    answers.send((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), torch.get_num_threads()))


def test_a_loader_ignores_ctrl_c_and_stops_on_sigterm_whatever_the_training_process_does() -> None:
    receiver, sender = multiprocessing.Pipe()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        process = multiprocessing.get_context("fork").Process(target=report_signals, args=(sender,))
        process.start()
        assert receiver.recv() == (signal.SIG_IGN, signal.SIG_DFL, 1)
        process.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_leaving_an_epoch_early_leaves_no_process_behind(images: ImageIndex) -> None:
    batches = train(images, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_the_rest_of_an_epoch_on_other_devices_shows_the_same_images_once(
    images: ImageIndex, reference: list[tuple[int, int, bytes]]
) -> None:
    plan = plan_epoch(
        N, world_size=3, batch_size=3, accumulate=2, steps_limit=None, done_images=12, planned=len(reference)
    )
    config = CONFIG.model_copy(update={"batch_size": 3, "workers": 0})
    rest = [
        sample
        for rank in range(3)
        for sample in samples(
            list(train_batches(images, config=config, epoch=1, plan=plan, rank=rank, pin_memory=False))
        )
    ]
    assert sorted(rest) == sorted(reference[12:])


def test_a_cpu_gets_unchanged_batches(images: ImageIndex, reference: list[tuple[int, int, bytes]]) -> None:
    assert samples(list(to_device(train(images), torch.device("cpu")))) == reference
