"""The cost of a checkpoint of pnasnet5large for the training loop, against torch's own ways to save the same state.

The benchmark uses the trainer's own loop, checkpoint manager and records. A plain copy, our save and the peers take
turns, each after one step, so that changes of the machine's speed affect all of them alike. Steps follow until the
checkpoint is on the disk, and the time by which they are slower counts too. The loop computes on one core.
"""

import contextlib
import io
import itertools
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.checkpoint.reading import list_checkpoints, verify_checkpoint
from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.records.lease import Lease
from trainer.records.run_records import Records
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.training.checkpoints import CheckpointManager, state_tensors
from trainer.training.progress import TrainingProgress
from trainer.training.steps import StepWindow, Training, train_steps
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

SIDE, IMAGES, CLASSES, ROUNDS, QUICK_ROUNDS = 331, 2, 1000, 3, 1
BAR = 0.10
"""Share of a step for which a save may block the loop, beyond the copy in memory."""
NPU_STEP_S = 32 / 69
"""A step of 32 images on one Ascend 910, from the rate in the seed's README, which used torch 1.8."""
COPY, OURS = "plain copy", "pnas"
TORCH_SAVE, ASYNC_SAVE = "`torch.save`, `fsync`", "`torch.distributed.checkpoint.async_save`"
T = TypeVar("T")
OUTPUT = Path("output")


@dataclass(frozen=True)
class Writing:
    """A save that no longer blocks the loop but may still write."""

    busy: Callable[[], bool] = lambda: False
    finish: Callable[[], None] = lambda: None
    """Wait for the end of the save and delete its files; not timed."""


Save = Callable[[], Writing]


@dataclass(frozen=True)
class Turn:
    """Wall seconds of a step before a save, of the save's block of the loop, and of the steps while the save writes."""

    step_before: float
    blocked: float
    steps_meanwhile: tuple[float, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Our checkpoint: its size, seconds of each write (which reads back and verifies), seconds of one verification."""

    mebibytes: float
    tensors: int
    writes: list[float]
    verification: float


def measure(quick: bool) -> list[Figure]:
    """Return the figures of a save."""
    # The writer gets the other cores, as with an accelerator. Also, two threads that wait for each
    # other on a shared machine would measure the load of other programs.
    torch.set_num_threads(1)
    # Runs write here by default; the system's folder for temporary files may be in memory.
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint-save-", dir=OUTPUT) as folder:
        return _figures(*_turns(Path(folder), QUICK_ROUNDS if quick else ROUNDS))


def checkpoints_of(training: Training, folder: Path, *, snapshots: Path | None = None) -> CheckpointManager:
    """Return what saves this training in a folder that has no lock, with snapshots in another one."""
    return CheckpointManager(
        training,
        folder,
        attempt=1,
        data={},
        classes=[str(label) for label in range(CLASSES)],
        lease=Lease(folder, ""),
        snapshots=snapshots,
    )


def _turns(folder: Path, rounds: int) -> tuple[dict[str, list[Turn]], Checkpoint]:
    """Return the turns of each way to save, and our checkpoint; the first turn of each way allocates its memory."""
    training = build_large_training(folder)
    windows = _steps(training)
    checkpoints = checkpoints_of(training, folder)
    lines = io.StringIO()
    with Records(folder, training.config, rank=0, world_size=1) as records, contextlib.redirect_stdout(lines):
        saves = {
            COPY: plain_copy(training),
            OURS: _ours(training, checkpoints, records),
            TORCH_SAVE: _torch_save(training, folder / "state.pth"),
            ASYNC_SAVE: _async_save(training, folder / "async"),
        }
        next(windows)  # the first step warms up caches and the allocator
        turns: dict[str, list[Turn]] = {name: [] for name in saves}
        for round_, (name, save) in itertools.product(range(rounds + 1), saves.items()):
            print(f"\rround {round_} of {rounds}", end="", file=sys.stderr, flush=True)
            turns[name].append(_turn(windows, save))
        print(file=sys.stderr)
    newest = list_checkpoints(checkpoints.folder)[0]
    verification, manifest = _timed(lambda: verify_checkpoint(newest))
    writes = [float(seconds) for seconds in re.findall(r"^checkpoint .*write_s=(\S+)", lines.getvalue(), re.MULTILINE)]
    return turns, Checkpoint(manifest.bytes / 2**20, len(manifest.tensors), writes[1:], verification)


def _turn(windows: Iterator[StepWindow], save: Save) -> Turn:
    step_before, _ = _timed(lambda: next(windows))
    blocked, writing = _timed(save)
    steps_meanwhile = []
    while writing.busy():
        steps_meanwhile.append(_timed(lambda: next(windows))[0])
    writing.finish()
    return Turn(step_before, blocked, tuple(steps_meanwhile))


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def build_large_training(folder: Path) -> Training:
    """Build the large model as a worker does, with momentum and a moving average, so that the state is complete."""
    config = TrainConfig(
        model="pnasnet5large",
        image_size=SIDE,
        batch_size=IMAGES,
        micro_batch=IMAGES,
        lr=1e-4,
        ema=0.9999,
        keep=1,
        # The loop yields after each window, so a window has one step.
        log_interval=1,
        device="cpu",
    )
    task = WorkerTask(config, folder)
    runtime = open_device("cpu")
    return build_training(
        task, config, runtime, runtime.open(0), weights=None, num_classes=CLASSES, watchdog=make_watchdog(task)
    )


def _steps(training: Training) -> Iterator[StepWindow]:
    """Take a training step at each `next`, always on the same random images."""
    generator = torch.Generator().manual_seed(0)
    batch = ImageBatch(
        torch.randint(256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (IMAGES,), generator=generator),
        torch.arange(IMAGES),
    )
    return train_steps(
        training,
        itertools.repeat(batch),
        plan_epoch(10**6, world_size=1, batch_size=IMAGES, accumulate=1, steps_limit=None),
        epoch=0,
        first_step=0,
        warmup_left=0,
    )


def plain_copy(training: Training) -> Save:
    """Copy the state into memory that is reused: the least that a save in the background can do."""
    source: dict[str, Tensor] = state_tensors(training)
    copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def save() -> Writing:
        for name, tensor in source.items():
            if name not in copies:
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name].copy_(tensor)
        return Writing()

    return save


def _ours(training: Training, checkpoints: CheckpointManager, records: Records) -> Save:
    progress = TrainingProgress()

    def finish() -> None:
        error = checkpoints.finish(training)
        if error is not None:
            raise TrainerError(f"{checkpoints.folder}: not saved: {error}")

    def save() -> Writing:
        progress.global_step += 1
        before = set(threading.enumerate())
        checkpoints.save(training, progress, records)
        writers = set(threading.enumerate()) - before
        return Writing(busy=lambda: any(thread.is_alive() for thread in writers), finish=finish)

    return save


def _state_dict(training: Training) -> dict[str, Any]:
    """Return the same state in the form that torch saves."""
    return {
        "model": training.network.state_dict(),
        "ema": training.evaluated.state_dict(),
        "optimizer": training.optimizer.state_dict(),
    }


def _torch_save(training: Training, path: Path) -> Save:
    """Save as most trainers do, and flush to the disk, which they leave out."""

    def save() -> Writing:
        with path.open("wb") as file:
            torch.save(_state_dict(training), file)
            file.flush()
            os.fsync(file.fileno())
        return Writing(finish=path.unlink)

    return save


def _async_save(training: Training, folder: Path) -> Save:
    """Save with one stager for all saves, so that it copies into memory that it already has."""
    # Despite `no_dist`, torch warns at each save of a single process.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    stager = DefaultStager(StagingOptions(False, False, False, False))

    def save() -> Writing:
        saved: Any = async_save(_state_dict(training), checkpoint_id=folder, async_stager=stager, no_dist=True)

        def finish() -> None:
            saved.result()
            shutil.rmtree(folder)

        return Writing(busy=lambda: not saved.done(), finish=finish)

    return save


def _figures(turns: dict[str, list[Turn]], checkpoint: Checkpoint) -> list[Figure]:
    # The first turn of each way allocates memory.
    later = {name: all_turns[1:] for name, all_turns in turns.items()}
    step = statistics.median(turn.step_before for name in later for turn in later[name])
    first = {name: Series(name, [all_turns[0].blocked]) for name, all_turns in turns.items()}
    blocked = {name: Series(name, [turn.blocked for turn in later[name]]) for name in later}
    costs = {name: Series(name, [turn.blocked + _slower(turn, step) for turn in later[name]]) for name in later}
    beyond = [ours.blocked - copy.blocked for ours, copy in zip(later[OURS], later[COPY], strict=True)]
    return [
        Figure(
            "the loop waits beyond a plain copy, against a step",
            "s",
            Series(OURS, beyond),
            Series("step", [turn.step_before for turn in later[OURS]]),
            Bar(BAR),
        ),
        Figure(
            "the same, against the seed's step of 32 images on one NPU",
            "s",
            Series(OURS, beyond),
            Series("step", [NPU_STEP_S] * len(beyond)),
        ),
        *(
            Figure(name, "s", series[OURS], series[peer])
            for name, series in (
                ("the loop waits", blocked),
                ("the loop waits for the first save", first),
                ("a save costs in all, with slower steps meanwhile", costs),
            )
            for peer in (COPY, TORCH_SAVE, ASYNC_SAVE)
        ),
        Figure("written, flushed, read back and verified during the steps", "s", Series(OURS, checkpoint.writes)),
        Figure("one verification, from the page cache", "s", Series(OURS, [checkpoint.verification])),
        Figure("size", "MiB", Series(OURS, [checkpoint.mebibytes])),
        Figure("tensors", "", Series(OURS, [checkpoint.tensors])),
    ]


def _slower(turn: Turn, step: float) -> float:
    """Return the seconds by which the steps during a save took longer than the same number of other steps.

    They are not faster during a save: a negative number is noise.
    """
    return max(0.0, sum(turn.steps_meanwhile) - len(turn.steps_meanwhile) * step)


BENCHMARK = Benchmark(
    name="checkpoint_save",
    title="Checkpoint of pnasnet5large",
    method=f"Model, momentum, moving average and statistics. The trainer's own loop at {SIDE} px, fp32, batch "
    f"{IMAGES}, on one thread. The peers neither hash nor read back. The wait is the host's work and does not grow "
    "with the batch; the copy from an accelerator's memory is not measured here.",
    measure=measure,
    packages=("torch",),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
