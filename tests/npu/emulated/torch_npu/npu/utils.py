"""Features of the chip."""

from .._emulation import core


def is_support_inf_nan() -> bool:
    """Return False on an Ascend 910A, whose fp16 saturates."""
    return not core.saturates()
