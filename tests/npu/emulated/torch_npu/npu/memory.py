"""The memory of tensors on a device."""

from typing import Any

from .._emulation import core
from .device import Which, device_count, index_of

UNLIMITED_BYTES = 1 << 29
"""The size that a device without NPU_EMULATED_HBM_MIB tells."""


def memory_allocated(device: Which = None) -> int:
    return int(core.memory_allocated(index_of(device)))


def mem_get_info(device: Which = None) -> tuple[int, int]:
    """Return the free and the whole memory in bytes; a device without a limit tells a small one, to spare the host."""
    index = index_of(device)
    total = int(core.memory_limit(index)) or UNLIMITED_BYTES
    return max(0, total - int(core.memory_allocated(index))), total


def max_memory_allocated(device: Which = None) -> int:
    return int(core.peak_memory(index_of(device)))


def reset_peak_memory_stats(device: Which = None) -> None:
    core.reset_peak_memory(index_of(device))


def memory_snapshot() -> list[dict[str, Any]]:
    """Return one segment for each device in use: the emulation has no pool of memory."""
    used = {index: core.memory_allocated(index) for index in range(device_count())}
    return [{"device": index, "total_size": size, "allocated_size": size} for index, size in used.items() if size]


def empty_cache() -> None:
    """Do nothing: no memory is cached."""
