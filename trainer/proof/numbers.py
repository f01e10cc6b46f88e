"""The number formats in which devices are checked."""

from dataclasses import dataclass

import torch

from trainer.devices.device import Device


@dataclass(frozen=True)
class NumberFormat:
    """A binary floating-point format (IEEE 754-2019, and bfloat16)."""

    name: str
    dtype: torch.dtype
    bits: int
    """Of the significand, with the hidden one: every whole number up to 2**bits is exact."""
    lowest: int
    """Exponent of the smallest normal number, which no device flushes to zero."""
    highest: int
    """Largest exponent."""

    @property
    def roundoff(self) -> float:
        """The largest relative error of a rounding."""
        return 2.0**-self.bits


FP32 = NumberFormat("fp32", torch.float32, 24, -126, 127)
FP16 = NumberFormat("fp16", torch.float16, 11, -14, 15)
BF16 = NumberFormat("bf16", torch.bfloat16, 8, -126, 127)


def formats_of(runtime: Device) -> tuple[NumberFormat, ...]:
    """Return the formats in which a device computes."""
    return (FP32, FP16, BF16) if runtime.has_bf16() else (FP32, FP16)
