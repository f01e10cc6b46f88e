"""What ranks do together: join, wrap the model, and agree on batch-norm statistics and counts."""

import inspect
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.devices import Device
from trainer.errors import UsageError

# A rank that waits longer for its peers than this has lost one.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def join(device: Device, *, rank: int, world_size: int, master_port: int) -> None:
    """Enter the process group at MASTER_ADDR:MASTER_PORT; a single process needs none.

    Raises:
        UsageError: the port is taken.
    """
    if world_size == 1:
        return
    try:
        dist.init_process_group(device.backend, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UsageError(f"port {master_port} is taken: choose another with --master-port") from error


def leave() -> None:
    """Leave the process group in order, so that no rank tears a connection down that another still reads."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, wrapped so that its gradients are averaged over the ranks; as it is on one rank.

    Buffers are not broadcast at each step: ranks keep their own batch-norm statistics until `equalise_batch_norm`.
    The gradients live in the buckets except on an NPU, whose fused optimizers keep a buffer of their own.
    """
    if not dist.is_initialized():
        return model
    parameters = inspect.signature(DistributedDataParallel).parameters
    # torch 2.14 renamed the option and warns at the old name.
    per_step_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {per_step_buffers: False, "gradient_as_bucket_view": device.type != "npu"}
    if device.type == "cpu":
        return DistributedDataParallel(model, **options)
    return DistributedDataParallel(model, device_ids=[device.index], **options)


def equalise_batch_norm(model: nn.Module) -> None:
    """Give every rank the mean over ranks of each running mean and variance, in one reduction.

    Without it each rank would score, and rank 0 would save, statistics that only its own images made.
    """
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
