"""What makes the stand-in run: the C++ backend, its name in torch, and HCCL's process group over gloo."""

import os
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend

from .build import load

core: Any = load()

DEVICE_NAME = "Ascend910-emulated"

HCCL_EXEC_TIMEOUT_S = 1836.0
"""HCCL's own, in its environment variable of that name."""


def name_backend() -> None:
    """From now on torch knows the device `npu`."""
    rename_privateuse1_backend("npu")
    generate_methods_for_privateuse1_backend(for_storage=True)


def register(npu: ModuleType) -> None:
    """Make `npu` torch.npu, and `hccl` a backend of process groups."""
    torch._register_device_module("npu", npu)
    dist.Backend.register_backend("hccl", _hccl, extended_api=True, devices=["npu"])


def note_call(name: str, **arguments: object) -> None:
    """A line in NPU_EMULATED_LOG."""
    core.note(f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})")


def _hccl(options: Any, _backend_options: Any) -> Any:
    limit = timedelta(seconds=float(os.environ.get("HCCL_EXEC_TIMEOUT", HCCL_EXEC_TIMEOUT_S)))
    # The real one opens the device here, or in the first collective.
    note_call("init_process_group", backend="hccl", rank=options.group_rank, device=core.current_device())
    gloo = dist.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=min(options.timeout, limit)
    )
    return core.hccl_over(gloo)
