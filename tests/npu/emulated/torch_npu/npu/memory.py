"""The memory of tensors on a device."""

from .._emulation import core
from .device import Which, index_of


def memory_allocated(device: Which = None) -> int:
    return int(core.memory_allocated(index_of(device)))


def max_memory_allocated(device: Which = None) -> int:
    return int(core.peak_memory(index_of(device)))


def reset_peak_memory_stats(device: Which = None) -> None:
    core.reset_peak_memory(index_of(device))


def empty_cache() -> None:
    """Do nothing: no memory is cached."""
