"""A run's checkpoints as its modes see them: when one is due, what goes into it, and whether it was saved.

The state is everything that the next step depends on. Weights, average, optimizer state and loss scale are the same on
all ranks. Batch statistics and generators are each rank's own and lie side by side in `ranks.*`. Random draws need only
the position in the run, which is their key.
"""

import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import CODE_FIELD, NO_SNAPSHOTS, SnapshotPace, code_hash, drop_snapshots, shortage
from trainer.checkpoint.writing import CheckpointWriter
from trainer.distributed.process_group import all_gather_object, gather
from trainer.distributed.stop_requests import Request
from trainer.model.weights import describe_weights
from trainer.records.lease import Lease
from trainer.records.run_records import Records, say
from trainer.shared.config.train import parse_snapshot_every
from trainer.shared.container import usable_processors
from trainer.shared.durations import Interval
from trainer.shared.errors import TrainerError
from trainer.shared.runs import CHECKPOINTS_FOLDER, TRAINING
from trainer.training.comparison import Place
from trainer.training.corruption import check_agreement
from trainer.training.progress import TrainingProgress
from trainer.training.steps import PEERS, Training

CLOSE_TIMEOUT_S = 20.0
"""Seconds that the end of a process may wait for a checkpoint that is being written."""
AGREED_RANKS = "agreed_ranks"
"""In a manifest's content: the number of ranks that had this state, each of them the same bits."""
MASTER = ".master"
"""How the name of a master weight ends: O2's fp32 copy of an fp16 parameter."""


class CheckpointManager:
    """Takes checkpoints and snapshots. Every rank has one.

    Rank 0 writes checkpoints to the disk, and the first rank of each node writes snapshots to the node's memory.
    """

    def __init__(
        self,
        training: Training,
        run: Path,
        *,
        attempt: int,
        data: Mapping[str, Any],
        classes: Sequence[str],
        lease: Lease,
        snapshots: Path | None = None,
        is_first_on_node: bool = True,
    ) -> None:
        """Every rank calls it: snapshots are taken on all nodes or on none.

        Args:
            data: what the checkpoint says about the images.
            classes: the labels that weight files name.
            snapshots: the folder in this node's memory for snapshots; None for a node without one.
        """
        config = training.config
        self.folder = run / CHECKPOINTS_FOLDER
        self.data, self.writer = dict(data), CheckpointWriter(attempt, lease.prove)
        self._started_at, self._wall_before = time.perf_counter(), 0.0
        self._constant_content = {
            "run": {"name": run.name, "mode": config.mode, "attempt": attempt},
            CODE_FIELD: code_hash(),
            "data": self.data,
            "config": config.model_dump(mode="json"),
            "num_classes": training.network.num_classes,
        }
        self._watchdog = training.watchdog
        self._is_writer = training.rank == 0
        self._saver = None
        self._unused_memory: Path | None = None
        if config.mode not in TRAINING:
            return
        takes_snapshots, every = parse_snapshot_every(config.snapshot_every)
        memory = _usable_memory(training, snapshots if takes_snapshots else None)
        self._unused_memory = snapshots if memory is None and is_first_on_node else None
        if self._is_writer or (is_first_on_node and memory is not None):
            self._saver = Saver(
                self.folder,
                every=Interval.parse(config.checkpoint_every),
                keep=config.keep,
                pin_memory=training.runtime.pin_memory,
                evaluated="model." if training.ema is None else "ema.",
                description=describe_weights(training.network, config, classes),
                writer=self.writer,
                snapshots=memory,
                pace=SnapshotPace(every, processors=usable_processors()) if memory else None,
            )

    def start(self, progress: TrainingProgress) -> None:
        """Count time and steps from here: the state at `progress` needs no saving."""
        self._started_at, self._wall_before = time.perf_counter(), progress.wall_s
        if self._saver is not None:
            self._saver.start_at(progress.global_step)

    def save_soon(self) -> None:
        """Make a checkpoint due at once: the run continues from a snapshot, which only lies in memory."""
        if self._saver is not None:
            self._saver.save_soon()

    def should_save(self, step: int, *, window_ends: bool) -> Request:
        """Return this rank's request after `step` steps of the run, the last still to come: what is due then.

        Before, wait for the snapshot that is being written if a crash would repeat too many steps without it.

        Args:
            window_ends: the figures of the steps are read after this one anyway.
        """
        if self._saver is None:
            return Request.NONE
        with self._watchdog.waiting("disk"):
            self._saver.bound_repetition(step - 1)
        if not self._is_writer:
            return Request.NONE
        if self._saver.is_due(step):
            return Request.SAVE
        return Request.SNAPSHOT if self._saver.is_snapshot_due(step, window_ends=window_ends) else Request.NONE

    def save(
        self, training: Training, progress: TrainingProgress, records: Records, *, weights: tuple[str, ...] = ()
    ) -> None:
        """Take a checkpoint; every rank calls it. Also write the evaluated weights to the files named in `weights`.

        Raises:
            CorruptionError: the ranks do not have the same state.
        """
        with training.watchdog.waiting("disk", epoch=progress.epoch, step=progress.step):
            if self._saver is not None:
                self._saver.wait()
        with training.watchdog.waiting(PEERS, epoch=progress.epoch, step=progress.step):
            is_snapshot = _are_records_written(training, records)
            place = _compare_ranks(training, progress, records)
            training.comparison.forget_results(place)
            tensors = state_tensors(training)
        if self._saver is None or not self._is_writer:
            # The records of this rank too must be on the disk before rank 0's checkpoint counts their steps.
            try:
                records.sync()
            except TrainerError as error:
                say("warning", text=str(error))
        if self._saver is None:
            return
        content = self._content(training, progress)
        with training.watchdog.waiting("disk", epoch=progress.epoch, step=progress.step):
            if self._is_writer:
                self._saver.save(
                    progress.global_step,
                    tensors,
                    content,
                    weights=weights,
                    sync=records.sync,
                    is_snapshot=is_snapshot,
                )
            elif is_snapshot:
                self._saver.snapshot(progress.global_step, tensors, content)

    def snapshot(self, training: Training, progress: TrainingProgress, records: Records) -> None:
        """Take a snapshot; every rank calls it.

        It is left out while lines wait for a full disk, since it would count their steps.

        Raises:
            CorruptionError: the ranks do not have the same state. After a crash all of them would take rank 0's.
        """
        began = time.monotonic()
        with training.watchdog.waiting("disk", epoch=progress.epoch, step=progress.step):
            if self._saver is not None:
                # Before the ranks meet: then all nodes have the last snapshot, and may delete the one before.
                self._saver.wait_for_snapshot()
        with training.watchdog.waiting(PEERS, epoch=progress.epoch, step=progress.step):
            if not _are_records_written(training, records):
                return
            _compare_ranks(training, progress, records)
            tensors = state_tensors(training)
        if self._saver is not None:
            content = self._content(training, progress)
            self._saver.snapshot(progress.global_step, tensors, content, began=began)

    def drop_snapshots(self) -> None:
        """Delete this node's snapshots: the run goes back to a checkpoint from before them."""
        if self._saver is not None:
            self._saver.drop_snapshots()
        if self._unused_memory is not None:  # with snapshots of an attempt that had more memory
            drop_snapshots(self._unused_memory)

    def finish(self, training: Training) -> str | None:
        """Wait for the last checkpoint. Return the reason, on all ranks, if it was not saved."""
        with training.watchdog.waiting("disk"):
            error = self._saver.wait() if self._saver is not None else None
        with training.watchdog.waiting(PEERS):
            return all_gather_object(error, training.group)[0]

    def close(self) -> None:
        """Give a checkpoint that is being written some seconds: an error may be ending the process."""
        if self._saver is not None:
            self._saver.close(timeout_s=CLOSE_TIMEOUT_S)

    def _content(self, training: Training, progress: TrainingProgress) -> dict[str, Any]:
        progress.wall_s = self._wall_before + time.perf_counter() - self._started_at
        return {
            **self._constant_content,
            "progress": progress.to_json(),
            "health": progress.health,
            "state": state_values(training),
            "arithmetic": numerics_fingerprint(training),
            # None: the ranks did not compare their states, or there is only one.
            AGREED_RANKS: training.comparison.ranks or None,
        }


def _are_records_written(training: Training, records: Records) -> bool:
    """Return whether all ranks' records would outlive their processes, as a snapshot that counts their steps needs."""
    return bool(gather(torch.tensor(records.is_written), training.group).all())


def _compare_ranks(training: Training, progress: TrainingProgress, records: Records) -> Place:
    """Return the place in the run if all ranks have the same state; see `check_agreement` for the errors."""
    # The batch statistics are averaged for an evaluation, and then differ from the next epoch's first step on.
    place = Place(progress.epoch, progress.step, averaged=progress.equalised or progress.step == 0)
    check_agreement(training, records, training.comparison.compare_now(place))
    return place


def _usable_memory(training: Training, snapshots: Path | None) -> Path | None:
    """Return `snapshots` if every node has memory for them; else None, and rank 0 says why. Every rank calls it."""
    own = sum(tensor.numel() * tensor.itemsize for _, tensor in shared_tensors(training))
    ranks = training.statistics.flat.nbytes + 2 * torch.get_rng_state().nbytes
    # Without a folder the user wants no snapshots, or the process that starts the workers has said the reason.
    reason = "" if snapshots is None else shortage(snapshots, own + training.world_size * ranks)
    reasons = [reason for reason in all_gather_object(reason, training.group) if reason is not None]
    if any(reasons) and training.rank == 0:
        say("warning", text=f"{NO_SNAPSHOTS}: {max(reasons)}")
    return None if reasons else snapshots


def state_tensors(training: Training) -> dict[str, Tensor]:
    """Return the state's tensors, still on the device and still live. Every rank calls it; rank 0 has the whole state.

    `model.*`, `ema.*` and `optimizer.*` are named as in PNASNet5; `ranks.batch_norm` is (W, n) fp32 and `ranks.rng` and
    `ranks.device_rng` are (W, bytes) uint8, for W ranks.
    """
    runtime = training.runtime
    own = {
        "ranks.batch_norm": training.statistics.flat,
        "ranks.rng": torch.get_rng_state(),
        **({} if runtime.kind == "cpu" else {"ranks.device_rng": runtime.rng_state()}),
    }
    ranks = {name: gather(tensor, training.group) for name, tensor in own.items()}
    return {**dict(shared_tensors(training)), **ranks}


def state_values(training: Training) -> dict[str, Any]:
    """Return the state's plain values."""
    return {
        "precision": training.precision.state_dict(),
        "ema_updates": None if training.ema is None else training.ema.updates,
    }


def shared_tensors(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all that is the same on all ranks."""
    yield from training.model_tensors.items()
    for group in training.optimizer.param_groups:
        for name, used in zip(group["names"], group["params"], strict=True):
            if used is not training.parameters[name]:
                yield f"optimizer.{name}{MASTER}", used
            for kind, value in sorted(training.optimizer.state.get(used, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer.{name}.{kind}", value


def numerics_fingerprint(training: Training) -> dict[str, Any]:
    """Return what the bits of a result depend on, apart from the settings."""
    return {
        "device": training.runtime.kind,
        "device_name": training.runtime.name(),
        "precision": training.precision.name,
        "threads": torch.get_num_threads(),
        "memory_format": training.config.memory_format,
        "micro_batch": training.micro_batch,
        "world_size": training.world_size,
        "batch_size": training.config.batch_size,
        "accumulate": training.config.accumulate,
        "torch": str(torch.__version__),
        # They decode and resize the images.
        "torchvision": importlib.metadata.version("torchvision"),
        "pillow": importlib.metadata.version("pillow"),
        # Captured steps add the gradients of three and more ranks in another order than DistributedDataParallel.
        "graph": None if training.captured is None else "on",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
