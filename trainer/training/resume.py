"""A run continues from a checkpoint: the ranks agree on it, its state goes into the parts, differences are reported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint.manifest import STATE_FILE, BadCheckpointError, CheckpointManifest
from trainer.checkpoint.reading import read_manifest, step_of
from trainer.distributed.process_group import all_gather_object
from trainer.records.run_records import say
from trainer.shared.config import TrainConfig
from trainer.shared.config.train import OF_ONE_ATTEMPT
from trainer.shared.container import node_name
from trainer.shared.errors import TrainerError
from trainer.shared.files import AGAIN, utf8_name
from trainer.training.checkpoints import MASTER, numerics_fingerprint, shared_tensors
from trainer.training.optimizer import begin_state
from trainer.training.progress import TrainingProgress
from trainer.training.steps import Training

RESUMED = "kill-and-resume"
"""The check of `prove` that compares a killed and resumed run with an undisturbed one."""


def check_ranks_agree(checkpoint: Path | None, data: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Check that all ranks continue from the same checkpoint with the same images.

    Raises:
        TrainerError: they do not, or the checkpoint cannot be read.
    """
    saved = None if checkpoint is None else (checkpoint.name, _read_manifest(checkpoint).saved)
    views = all_gather_object((saved, data["fingerprint"]), group)
    if len({checkpoint for checkpoint, _ in views}) > 1:
        raise TrainerError(
            f"the nodes see different checkpoints ({_per_rank([c and c[0] for c, _ in views])}): is --output on "
            "one shared file system?"
        )
    if len({fingerprint for _, fingerprint in views}) > 1:
        raise TrainerError(f"the nodes see different images ({_per_rank([f for _, f in views])}): compare --data-path")


def choose_snapshot(checkpoint: Path | None, snapshots: Sequence[Path], group: dist.ProcessGroup | None) -> Path | None:
    """Return the newest of this node's snapshots that every node has, if it is newer than `checkpoint`; else that.

    Raises:
        TrainerError: a snapshot cannot be read any more.
    """
    own = {(step_of(path) or 0, int(_read_manifest(path).content["run"]["attempt"])): path for path in snapshots}
    common = set(own).intersection(*all_gather_object(list(own), group))
    newest = max(common, default=None)
    if newest is None or (checkpoint is not None and newest[0] <= (step_of(checkpoint) or 0)):
        return checkpoint
    return own[newest]


def begin_progress(training: Training) -> TrainingProgress:
    """Return the progress of a new run: no step is done, and the learning rate fits the images per step.

    The rate grows in proportion to the images per step, as in Goyal et al., arXiv:1706.02677. A resumed run has the
    factor from its checkpoint, so that `--resume-lr keep` keeps the rate.
    """
    reference = training.config.lr_batch
    images = _global_batch(numerics_fingerprint(training))
    return TrainingProgress(lr_factor=1.0 if reference is None else images / reference)


def resume(
    training: Training, checkpoint: Path, data: Mapping[str, Any], *, is_snapshot: bool = False
) -> TrainingProgress:
    """Restore the state of a verified checkpoint, and print whether the run continues bit for bit.

    Args:
        data: what a checkpoint taken now would say about the images.
        is_snapshot: the checkpoint lies in memory; the line names its step.

    Raises:
        TrainerError: the checkpoint cannot be read any more.
    """
    content = _read_manifest(checkpoint).content
    progress = TrainingProgress.from_json(content["progress"])
    try:
        with utf8_name(checkpoint / STATE_FILE) as name:
            tensors = load_file(name)
    except OSError as error:  # it could be read a moment ago
        raise TrainerError(f"{checkpoint / STATE_FILE}: cannot be read: {error.strerror or error}; {AGAIN}") from error
    before = content["arithmetic"]
    restarted_parts = restore(training, tensors, content["state"], world_size=before["world_size"])
    config = training.config
    # Batch norm sees one part of a batch at a time, so parts of another size are another training. Take the size of the
    # saved run, unless the user asks for another one or this machine has less memory.
    if config.micro_batch is None and config.batch_size == before["batch_size"]:
        training.micro_batch = min(training.micro_batch, before["micro_batch"])
    fingerprint = numerics_fingerprint(training)
    if config.resume_lr == "scale":
        progress.lr_factor *= _global_batch(fingerprint) / _global_batch(before)
    if training.rank == 0:
        changes = [
            *(f"{part} restarts" for part in restarted_parts),
            *changes_since(before, fingerprint, content["config"], config),
            *(["other images"] if content["data"]["fingerprint"] != data["fingerprint"] else []),
        ]
        # Kernels of other devices may add in another order each time, large ones too where small ones do not.
        small = "not proven" if training.proof.obstacle(RESUMED, node_name()) else "in small"
        same = "yes" if training.device.type == "cpu" else small
        step = progress.global_step if is_snapshot else None
        say("resumed", bit_exact="no" if changes else same, differs="; ".join(changes) or None, snapshot=step)
    return progress


@torch.no_grad()
def restore(
    training: Training, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, world_size: int
) -> list[str]:
    """Put a state into the parts of a run, in place, so that layouts and references stay valid.

    A part that the saved run did not have starts from its beginning: the average from the weights, the optimizer from
    its first state.

    Args:
        world_size: ranks of the run that saved it. If it is another number, each rank gets the mean batch statistics.

    Returns:
        The parts that start from their beginning.

    Raises:
        KeyError: the state is of another network.
    """
    restarted_parts = set()
    begin_state(training.optimizer, training.config)
    for name, tensor in shared_tensors(training):
        part, _, rest = name.partition(".")
        master = f"optimizer.{rest}{MASTER}"
        if part == "model" and tensor.dtype == torch.float32 and master in tensors:
            tensor.copy_(tensors[master])  # the saved run computed in fp16
        elif name in tensors:
            tensor.copy_(tensors[name])
        elif part == "ema":
            tensor.copy_(tensors[f"model.{rest}"])
            restarted_parts.add("ema")
        elif name.endswith(MASTER):
            tensor.copy_(tensors[f"model.{rest.removesuffix(MASTER)}"])
            restarted_parts.add("master weights")
        elif part == "optimizer":
            restarted_parts.add(name.rpartition(".")[2].removesuffix("_buffer"))
        else:
            raise KeyError(name)
    statistics = tensors["ranks.batch_norm"]
    same_ranks = world_size == training.world_size
    training.statistics.flat.copy_(statistics[training.rank] if same_ranks else statistics.mean(dim=0))
    if same_ranks:
        # Cloned: torch reads the state as if it lay aligned in memory, and crashes where it does not.
        torch.set_rng_state(tensors["ranks.rng"][training.rank].clone())
        if "ranks.device_rng" in tensors:
            training.runtime.set_rng_state(tensors["ranks.device_rng"][training.rank].clone())
    scale = training.precision.state_dict()
    if scale.keys() & values["precision"].keys():
        training.precision.load_state_dict(values["precision"])
    elif scale:  # the saved run had no scale, or apex's, which has other names
        restarted_parts.add("loss scale")
    if training.ema is not None:
        training.ema.updates = values["ema_updates"] or 0
    return sorted(restarted_parts)


def changes_since(
    before: Mapping[str, Any], fingerprint: Mapping[str, Any], saved: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """Return `name old -> new` for each part of the numerics and each setting that differs, once."""
    return list(dict.fromkeys([*_changes(before, fingerprint), *changed_settings(saved, config)]))


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Return `name old -> new` for each setting of the run that differs from its checkpoint's.

    An option that the checkpoint's version of this program did not have was at its default.
    """
    old, new = ({**TrainConfig().model_dump(mode="json"), **saved}, config.model_dump(mode="json"))
    return _changes(old, {name: value for name, value in new.items() if name not in OF_ONE_ATTEMPT})


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{name} {old.get(name)} -> {value}" for name, value in new.items() if old.get(name) != value]


def _per_rank(values: Sequence[object]) -> str:
    return ", ".join(f"rank {rank} {value or 'none'}" for rank, value in enumerate(values))


def _read_manifest(checkpoint: Path) -> CheckpointManifest:
    try:
        return read_manifest(checkpoint)
    except BadCheckpointError as reason:
        raise TrainerError(f"{checkpoint}: {reason}") from None


def _global_batch(values: Mapping[str, Any]) -> int:
    """Return the images per optimizer step of the whole job."""
    return int(values["world_size"] * values["batch_size"] * values["accumulate"])
