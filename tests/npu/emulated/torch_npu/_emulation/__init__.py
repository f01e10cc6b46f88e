"""What makes the stand-in run: the C++ backend, its name in torch, and HCCL's process group over gloo."""

import json
import os
from datetime import timedelta
from pathlib import Path
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


def _device_in_table(rank: int) -> str | None:
    """The device of a rank by the table in RANK_TABLE_FILE; the real one, too, passes over a link without a word."""
    path = Path(os.environ.get("RANK_TABLE_FILE", ""))
    if not path.is_file() or path.is_symlink():
        return None
    devices = (one for server in json.loads(path.read_text())["server_list"] for one in server["device"])
    return next((str(one["device_id"]) for one in devices if one["rank_id"] == str(rank)), None)


def _hccl(options: Any, _backend_options: Any) -> Any:
    limit_s = float(os.environ.get("HCCL_EXEC_TIMEOUT") or HCCL_EXEC_TIMEOUT_S)
    # 0 is for ever.
    limit = timedelta(seconds=limit_s) if limit_s else options.timeout
    # The real one opens the device here, or in the first collective.
    rank, device = options.group_rank, core.current_device()
    note_call("init_process_group", backend="hccl", rank=rank, device=device, table=_device_in_table(rank))
    gloo = dist.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=min(options.timeout, limit)
    )
    return core.hccl_over(gloo)
