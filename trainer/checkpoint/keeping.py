"""A run's checkpoints as its modes see them: when one is due, what goes into it, and how a run goes on from one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainer.checkpoint.files import CHECKPOINTS, Manifest, newest_valid, read_manifest
from trainer.checkpoint.manifest import STATE_FILE
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.state import restore, tensors_of, values_of
from trainer.config.interval import Interval
from trainer.config.train import TRAINING
from trainer.distributed import gathered
from trainer.engine import PEERS, Training
from trainer.errors import TrainerError
from trainer.inherit import data_config
from trainer.model.weights import describe
from trainer.progress import Progress
from trainer.records import Records, say
from trainer.requests import Request


class Keeper:
    """Takes checkpoints. Every rank has one; rank 0's writes."""

    def __init__(self, training: Training, run: Path, *, attempt: int, data: Mapping[str, Any]) -> None:
        """`data` is what the checkpoint says of the images."""
        config = training.config
        self.folder = run / CHECKPOINTS
        self._about = {"run": {"name": run.name, "mode": config.mode, "attempt": attempt}, "data": dict(data)}
        self._saver = None
        if training.rank == 0 and config.mode in TRAINING:
            every = Interval.parse(config.checkpoint_every)
            self._saver = Saver(self.folder, every=every, keep=config.keep, pin_memory=training.runtime.pin_memory)

    def start(self, progress: Progress) -> None:
        """The run goes on from here."""
        if self._saver is not None:
            self._saver.start_at(progress.global_step)

    def wish(self, step: int) -> Request:
        """What this rank wants after so many steps of the run."""
        return Request.SAVE if self._saver is not None and self._saver.is_due(step) else Request.NONE

    def save(self, training: Training, progress: Progress, records: Records, *, weights: tuple[str, ...] = ()) -> None:
        """Take a checkpoint; every rank calls it. Also keep the evaluated weights under the names in `weights`."""
        with training.watchdog.waiting(PEERS, epoch=progress.epoch, step=progress.step):
            tensors = tensors_of(training)
        if self._saver is None:
            return
        description = describe(training.evaluated, data_config(training.config))
        with training.watchdog.waiting("disk", epoch=progress.epoch, step=progress.step):
            self._saver.save(
                progress.global_step,
                tensors,
                {**self._about, **_content(training, progress)},
                weights={f"{name}.safetensors": description for name in weights},
                sync=records.sync,
            )

    def finish(self, training: Training) -> str | None:
        """Wait for the last checkpoint; on all ranks why it was not saved, if it was not."""
        with training.watchdog.waiting("disk"):
            error = self._saver.wait() if self._saver is not None else None
        with training.watchdog.waiting(PEERS):
            return gathered(error, training.group)[0]


def resume(training: Training, checkpoint: Path) -> Progress:
    """Put the state of a verified checkpoint into the parts, and say whether the run goes on bit for bit.

    Raises:
        TrainerError: the ranks have been given different checkpoints.
    """
    manifest = read_manifest(checkpoint)
    if len(set(gathered((manifest.path.name, str(manifest.saved)), training.group))) > 1:
        raise TrainerError(f"{checkpoint}: the nodes see different checkpoints: is --output on one shared file system?")
    content = manifest.content
    progress = Progress.from_json(content["progress"])
    tensors = load_file(checkpoint / STATE_FILE)
    before = content["arithmetic"]
    restore(training, tensors, content["state"], world_size=before["world_size"])
    _take_micro_batch(training, before)
    now = arithmetic(training)
    if training.config.resume_lr == "scale":
        progress.lr_factor *= _global_batch(now) / _global_batch(before)
    if training.rank == 0:
        _say_what_differs(before, now)
    return progress


def _take_micro_batch(training: Training, before: Mapping[str, Any]) -> None:
    """Compute batches in the parts that they had, unless the user wants others or this machine has less memory.

    Batch norm sees one part at a time, so another size is another training.
    """
    config = training.config
    if config.micro_batch is None and config.batch_size == before["batch_size"]:
        training.micro_batch = min(training.micro_batch, before["micro_batch"])


def _global_batch(values: Mapping[str, Any]) -> int:
    """Images per optimizer step of the whole job."""
    return int(values["world_size"] * values["batch_size"] * values["accumulate"])


def rewound(training: Training, folder: Path) -> Progress | None:
    """Back to the newest valid checkpoint in this run's folder; None if there is none."""
    found: Manifest | None = None
    if training.rank == 0:
        found = newest_valid(folder, on_refused=lambda path, why: say("warning", text=f"{path} refused: {why}"))
    with training.watchdog.waiting(PEERS):
        path = gathered(None if found is None else found.path, training.group)[0]
    return None if path is None else resume(training, path)


def _content(training: Training, progress: Progress) -> dict[str, Any]:
    return {
        "progress": progress.to_json(),
        "state": values_of(training),
        "config": training.config.model_dump(mode="json"),
        "num_classes": training.network.num_classes,
        "arithmetic": arithmetic(training),
    }


def arithmetic(training: Training) -> dict[str, Any]:
    """All beside the settings that the bits of a result depend on."""
    return {
        "device": training.runtime.kind,
        "device_name": training.runtime.name(),
        "precision": training.precision.name,
        "threads": torch.get_num_threads(),
        "channels_last": training.config.channels_last,
        "micro_batch": training.micro_batch,
        "world_size": training.world_size,
        "batch_size": training.config.batch_size,
        "accumulate": training.config.accumulate,
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }


def _say_what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if differing:
        say("resumed", bit_exact="no", differs="; ".join(differing))
    else:
        say("resumed", bit_exact="yes")
