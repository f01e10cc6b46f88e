"""A run's checkpoints as its modes see them: when one is due, what goes into it, and how a run goes on from one."""

import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from trainer.checkpoint.files import CHECKPOINTS, BadCheckpointError, Manifest, newest_valid, read_manifest
from trainer.checkpoint.manifest import STATE_FILE
from trainer.checkpoint.saver import Saver
from trainer.distributed.process_group import gathered
from trainer.distributed.stop_requests import Request
from trainer.model.weight_settings import data_config
from trainer.model.weights import describe
from trainer.records.run_records import Records, say
from trainer.shared.config import TrainConfig
from trainer.shared.config.train import OF_ONE_ATTEMPT, TRAINING
from trainer.shared.durations import Interval
from trainer.shared.errors import TrainerError
from trainer.shared.files import reading
from trainer.training.progress import Progress
from trainer.training.state import restore, tensors_of, values_of
from trainer.training.steps import PEERS, Training

LEAVE_S = 20.0
"""Seconds that the end of a process may wait for a checkpoint that is being written."""


class Keeper:
    """Takes checkpoints. Every rank has one; rank 0's writes."""

    def __init__(self, training: Training, run: Path, *, attempt: int, data: Mapping[str, Any]) -> None:
        """`data` is what the checkpoint says of the images."""
        config = training.config
        self.folder = run / CHECKPOINTS
        self.data = dict(data)
        self._began, self._wall_before = time.perf_counter(), 0.0
        self._about = {"run": {"name": run.name, "mode": config.mode, "attempt": attempt}, "data": self.data}
        self._saver = None
        if training.rank == 0 and config.mode in TRAINING:
            every = Interval.parse(config.checkpoint_every)
            self._saver = Saver(self.folder, every=every, keep=config.keep, pin_memory=training.runtime.pin_memory)

    def start(self, progress: Progress) -> None:
        """The run goes on from here."""
        self._began, self._wall_before = time.perf_counter(), progress.wall_s
        if self._saver is not None:
            self._saver.start_at(progress.global_step)

    def wish(self, step: int) -> Request:
        """What this rank wants after so many steps of the run."""
        return Request.SAVE if self._saver is not None and self._saver.is_due(step) else Request.NONE

    def save(self, training: Training, progress: Progress, records: Records, *, weights: tuple[str, ...] = ()) -> None:
        """Take a checkpoint; every rank calls it. Also keep the evaluated weights under the names in `weights`."""
        with training.watchdog.waiting(PEERS, epoch=progress.epoch, step=progress.step):
            tensors = tensors_of(training)
        progress.wall_s = self._wall_before + time.perf_counter() - self._began
        if self._saver is None:
            _sync(records)
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

    def leave(self) -> None:
        """Before the process ends of an error: a checkpoint that is nearly written is worth some seconds."""
        if self._saver is not None:
            self._saver.leave(within_s=LEAVE_S)

    def finish(self, training: Training) -> str | None:
        """Wait for the last checkpoint; on all ranks why it was not saved, if it was not."""
        with training.watchdog.waiting("disk"):
            error = self._saver.wait() if self._saver is not None else None
        with training.watchdog.waiting(PEERS):
            return gathered(error, training.group)[0]


def _sync(records: Records) -> None:
    """The records of a rank that writes no checkpoint: to the disk, before one counts what is in them."""
    try:
        records.sync()
    except TrainerError as error:
        say("warning", text=str(error))


def agree(checkpoint: Path | None, data: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Make sure that all ranks go on from the same checkpoint with the same images.

    Raises:
        TrainerError: they do not; or the checkpoint cannot be read.
    """
    saved = None if checkpoint is None else (checkpoint.name, str(_manifest(checkpoint).saved))
    seen = gathered((saved, data["fingerprint"]), group)
    if len({checkpoint for checkpoint, _ in seen}) > 1:
        raise TrainerError(
            f"the nodes see different checkpoints ({_of_each_rank([c and c[0] for c, _ in seen])}): is --output on "
            "one shared file system?"
        )
    if len({fingerprint for _, fingerprint in seen}) > 1:
        raise TrainerError(
            f"the nodes see different images ({_of_each_rank([f for _, f in seen])}): compare --data-path"
        )


def _of_each_rank(values: Sequence[object]) -> str:
    return ", ".join(f"rank {rank} {value or 'none'}" for rank, value in enumerate(values))


def _manifest(checkpoint: Path) -> Manifest:
    try:
        return read_manifest(checkpoint)
    except BadCheckpointError as reason:
        raise TrainerError(f"{checkpoint}: {reason}") from None


def resume(training: Training, checkpoint: Path, data: Mapping[str, Any]) -> Progress:
    """Put the state of a verified checkpoint into the parts, and say whether the run goes on bit for bit.

    Args:
        data: what a checkpoint of now would say of the images.

    Raises:
        TrainerError: it cannot be read any more.
    """
    content = _manifest(checkpoint).content
    progress = Progress.from_json(content["progress"])
    with reading(checkpoint / STATE_FILE):
        tensors = load_file(checkpoint / STATE_FILE)
    before = content["arithmetic"]
    begun_anew = restore(training, tensors, content["state"], world_size=before["world_size"])
    _take_micro_batch(training, before)
    now = arithmetic(training)
    if training.config.resume_lr == "scale":
        progress.lr_factor *= _global_batch(now) / _global_batch(before)
    if training.rank == 0:
        changed = [
            *(f"{part} begins anew" for part in begun_anew),
            *_changes(before, now),
            *changed_settings(content["config"], training.config),
            *(["other images"] if content["data"]["fingerprint"] != data["fingerprint"] else []),
        ]
        # Kernels of other devices may add in another order each time.
        same = "yes" if training.device.type == "cpu" else "not proven"
        say("resumed", bit_exact="no" if changed else same, differs="; ".join(changed) or None)
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


def rewound(training: Training, keeper: Keeper) -> Progress | None:
    """Back to the newest valid checkpoint in this run's folder; None if there is none."""
    folder = keeper.folder
    found: Manifest | None = None
    if training.rank == 0:
        found = newest_valid(folder, on_refused=lambda path, why: say("warning", text=f"{path} refused: {why}"))
    with training.watchdog.waiting(PEERS):
        path = gathered(None if found is None else found.path, training.group)[0]
    if path is None:
        return None
    progress = resume(training, path, keeper.data)
    progress.bad_steps = 0
    return progress


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
        # It decodes and resizes the images.
        "torchvision": importlib.metadata.version("torchvision"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Return `name old -> new` for each setting of the run that its checkpoint has otherwise.

    An option that the checkpoint's version of this program did not have was at its default.
    """
    before, now = ({**TrainConfig().model_dump(mode="json"), **saved}, config.model_dump(mode="json"))
    return _changes(before, {name: value for name, value in now.items() if name not in OF_ONE_ATTEMPT})


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
