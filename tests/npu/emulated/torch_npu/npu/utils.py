"""What a chip can do."""

from .._emulation import core


def is_support_inf_nan() -> bool:
    """Not on an Ascend 910A, whose fp16 saturates."""
    return not core.saturates()
