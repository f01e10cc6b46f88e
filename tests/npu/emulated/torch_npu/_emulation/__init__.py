"""The inside of the stand-in: the C++ backend, its name in torch, and HCCL's process group over gloo."""

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
from .step_times import plant_reversed_sums

plant_reversed_sums()
core: Any = load()

DEVICE_NAME = "Ascend910-emulated"

HCCL_EXEC_TIMEOUT_S = 1836.0
"""HCCL's default for its environment variable of that name."""


def name_backend() -> None:
    """Name the device `npu` in torch."""
    rename_privateuse1_backend("npu")
    generate_methods_for_privateuse1_backend(for_storage=True)


def register(npu: ModuleType) -> None:
    """Make `npu` torch.npu, and `hccl` a backend of process groups."""
    torch._register_device_module("npu", npu)
    dist.Backend.register_backend("hccl", _hccl, extended_api=True, devices=["npu"])


def note_call(name: str, **arguments: object) -> None:
    """Write a line to NPU_EMULATED_LOG."""
    core.note(f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})")


def _device_in_table(rank: int) -> str | None:
    """Return the device of a rank by the table in RANK_TABLE_FILE; a link is ignored silently, like by the real one."""
    path = Path(os.environ.get("RANK_TABLE_FILE", ""))
    if not path.is_file() or path.is_symlink():
        return None
    devices = (one for server in json.loads(path.read_text())["server_list"] for one in server["device"])
    return next((str(one["device_id"]) for one in devices if one["rank_id"] == str(rank)), None)


def _hccl(options: Any, _backend_options: Any) -> Any:
    limit_s = float(os.environ.get("HCCL_EXEC_TIMEOUT") or HCCL_EXEC_TIMEOUT_S)
    # 0 means for ever.
    limit = timedelta(seconds=limit_s) if limit_s else options.timeout
    # The real one opens the device here, or in the first collective.
    rank, device = options.group_rank, core.current_device()
    note_call("init_process_group", backend="hccl", rank=rank, device=device, table=_device_in_table(rank))
    gloo = dist.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=min(options.timeout, limit)
    )
    return core.hccl_over(gloo, _delay_us_per_mib(options, device))


def _delay_us_per_mib(options: Any, device: int) -> float:
    """Return by how much a slow link delays this group: NPU_EMULATED_SLOW_LINK=DEVICE-DEVICE:MICROSECONDS_PER_MIB."""
    ends, _, delay = os.environ.get("NPU_EMULATED_SLOW_LINK", "").partition(":")
    if not ends:
        return 0.0
    options.store.set(f"emulated-device/{options.group_rank}", str(device))
    devices = {options.store.get(f"emulated-device/{rank}").decode() for rank in range(options.group_size)}
    return float(delay) if devices.issuperset(ends.split("-")) else 0.0
