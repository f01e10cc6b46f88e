"""What ranks do together: join, wrap the model, and agree on batch-norm statistics and counts."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.devices.device import Device
from trainer.distributed.batch_norm import BatchStatistics
from trainer.shared.errors import UsageError

T = TypeVar("T")

# A rank that waits longer for its peers than this has lost one.
COLLECTIVE_TIMEOUT_S = 1800.0
# The watchdog, which can say which rank it waits for, has to be first.
WATCHDOG_MARGIN_S = 300.0


def join(
    device: Device, *, rank: int, world_size: int, master_port: int, stall_timeout_s: float
) -> dist.ProcessGroup | None:
    """Enter the process group at MASTER_ADDR:MASTER_PORT; a single process needs none.

    Args:
        stall_timeout_s: the watchdog's; a collective operation may take longer.

    Returns:
        A second group over gloo, in which the hosts talk without making a device wait.

    Raises:
        UsageError: the port is taken.
    """
    if world_size == 1:
        return None
    timeout = timedelta(seconds=max(COLLECTIVE_TIMEOUT_S, stall_timeout_s + WATCHDOG_MARGIN_S))
    try:
        dist.init_process_group(device.backend, rank=rank, world_size=world_size, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UsageError(f"port {master_port} is taken: choose another with --master-port") from error
    group = dist.new_group(backend="gloo", timeout=timeout)
    return group if isinstance(group, dist.ProcessGroup) else None


def leave(group: dist.ProcessGroup | None) -> None:
    """Leave the process group in order, so that no rank tears a connection down that another still reads.

    Args:
        group: the one in which the hosts talk, from `join`.
    """
    if dist.is_initialized():
        dist.barrier(group)
        dist.destroy_process_group()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, wrapped so that its gradients are averaged over the ranks; as it is on one rank.

    Buffers are not broadcast at each step: ranks keep their own batch-norm statistics until `equalise`.
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


def equalise(statistics: BatchStatistics) -> None:
    """Give every rank the mean over ranks of each running mean and variance, in one reduction.

    Without it each rank would score, and rank 0 would save, statistics that only its own images made.
    """
    if dist.is_initialized():
        dist.all_reduce(statistics.flat)
        statistics.flat /= dist.get_world_size()


def any_rank(flag: Tensor) -> Tensor:
    """Whether the bool scalar `flag` is true on any rank; the host does not wait for an accelerator's answer."""
    if not dist.is_initialized():
        return flag
    count = flag.to(torch.int32)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return count.bool()


def gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(W, *shape): `tensor` of every rank, in the order of ranks, on the CPU; `group` is one of gloo's."""
    own = tensor.detach().cpu()
    if group is None:
        return own[None]
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own, group=group)
    return torch.stack(parts)


def gathered(value: T, group: dist.ProcessGroup | None) -> list[T]:
    """Every rank's `value`, on every rank, in the order of ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def settle_buckets(parallel: nn.Module, batch: Callable[[], Tensor]) -> None:
    """One forward and backward pass whose result is thrown away; done before the first step of every process.

    DistributedDataParallel orders its buckets anew after the first pass it sees. On three ranks and more that changes
    the order in which gradients are added, so that a resumed run would differ from its first step on. (Measured.)

    Args:
        batch: makes the images (N, 3, S, S) for the pass.
    """
    if not isinstance(parallel, DistributedDataParallel):
        return
    buffers = {name: buffer.clone() for name, buffer in parallel.named_buffers()}
    parallel.train()
    outputs = parallel(batch())
    sum(output.float().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    parallel.zero_grad()
    with torch.no_grad():
        for name, buffer in parallel.named_buffers():
            buffer.copy_(buffers[name])


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
