"""The process group: join and leave it, wrap the model for it, and reduce or gather values over its ranks."""

import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.devices.device import Device
from trainer.devices.runtime_env import WATCHDOG_MARGIN_S
from trainer.shared.errors import UsageError
from trainer.shared.program import without_garbage_collector

_T = TypeVar("_T")

# A rank that waits longer than this for its peers has lost one of them.
COLLECTIVE_TIMEOUT_S = 1800.0


def join_process_group(
    device: Device,
    *,
    rank: int,
    world_size: int,
    master_port: int,
    stall_timeout_s: float,
    listener: int | None = None,
) -> dist.ProcessGroup | None:
    """Enter the process group at MASTER_ADDR:MASTER_PORT; a single process needs no group.

    Args:
        stall_timeout_s: the watchdog's; a collective operation may take longer, since the watchdog can say which rank
            is missing and must be first.
        listener: on rank 0, the descriptor of a socket that listens on the port, which torch closes; else None.

    Returns:
        A second group over gloo, in which the hosts talk without making a device wait.

    Raises:
        UsageError: the port is taken.
    """
    if world_size == 1:
        return None
    timeout = timedelta(seconds=max(COLLECTIVE_TIMEOUT_S, stall_timeout_s + WATCHDOG_MARGIN_S))
    server = None if listener is None else _serve(master_port, listener)
    try:
        dist.init_process_group(device.backend, rank=rank, world_size=world_size, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UsageError(f"port {master_port} is taken: choose another with --master-port") from error
    del server  # it stays as long as the group's store
    group = dist.new_group(backend="gloo", timeout=timeout)
    return group if isinstance(group, dist.ProcessGroup) else None


def _serve(port: int, listener: int) -> object:
    """Return a store whose server listens on an inherited socket.

    All stores of a process with `multi_tenant` share one server for each port. The store that torch makes for a process
    group is one of them (`_create_c10d_store` in torch/distributed/rendezvous.py).
    """
    os.set_inheritable(listener, False)  # libraries start programs without closing descriptors
    return dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not exported as a type checker asks for
        os.environ["MASTER_ADDR"],
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener,
    )


def leave_process_group(group: dist.ProcessGroup | None) -> None:
    """Leave the process group in order, so that no rank closes a connection that another one still reads.

    Args:
        group: the hosts' group, from `join_process_group`.
    """
    if dist.is_initialized():
        dist.barrier(group)
        dist.destroy_process_group()


def data_parallel(model: nn.Module, device: torch.device, *, bucket_mib: int | None = None) -> nn.Module:
    """Return `model`, wrapped so that its gradients are averaged over the ranks; unwrapped on one rank.

    Gradients are exchanged in buckets of `bucket_mib` MiB during the backward pass; by torch's default in buckets of
    25, after a first one of 1.

    Buffers are not broadcast at each step: ranks keep their own batch-norm statistics until `BatchStatistics.average`.
    The gradients live in the buckets except on an NPU, whose fused optimizers have another buffer for them.
    """
    if not dist.is_initialized():
        return model
    parameters = inspect.signature(DistributedDataParallel).parameters
    # torch 2.14 renamed the option and warns at the old name.
    per_step_buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    options: dict[str, Any] = {per_step_buffers: False, "gradient_as_bucket_view": device.type != "npu"}
    options["bucket_cap_mb"] = bucket_mib
    device_ids = None if device.type == "cpu" else [device.index]
    with without_garbage_collector():  # it imports torch._dynamo
        return DistributedDataParallel(model, device_ids=device_ids, **options)


def warm_up_ddp(parallel: nn.Module, make_images: Callable[[], Tensor]) -> None:
    """Do one forward and backward pass and discard its result, before the first step of every process.

    DistributedDataParallel reorders its buckets after the first pass. On three ranks and more that changes the order in
    which gradients are added, so that a resumed run would differ from its first step on. (Measured.)

    Args:
        make_images: returns the images (N, 3, S, S) for the pass.
    """
    if not isinstance(parallel, DistributedDataParallel):
        return
    buffers = {name: buffer.clone() for name, buffer in parallel.named_buffers()}
    parallel.train()
    outputs = parallel(make_images())
    sum(output.float().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    parallel.zero_grad()
    with torch.no_grad():
        for name, buffer in parallel.named_buffers():
            buffer.copy_(buffers[name])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of `values` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_rank(flag: Tensor) -> Tensor:
    """Return whether the bool scalar `flag` is true on any rank; the host does not wait for an accelerator's answer."""
    if not dist.is_initialized():
        return flag
    count = flag.to(torch.int32)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return count.bool()


def gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return (W, *shape): `tensor` of every rank, in the order of ranks, on the CPU; `group` is a gloo group."""
    own = tensor.detach().cpu()
    if group is None:
        return own[None]
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own, group=group)
    return torch.stack(parts)


def all_gather_object(value: _T, group: dist.ProcessGroup | None) -> list[_T]:
    """Return every rank's `value`, on every rank, in the order of ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values
