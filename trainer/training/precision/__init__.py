"""The arithmetic of a run, chosen in one place: fp32, bf16 or fp16 autocast, or O2 by apex or without it.

The rest of the trainer does not ask for the kind. To add one, write a class that extends `Precision`, choose it here,
and add its name to `--precision` (TrainConfig).
"""

import importlib.util

import torch

from trainer.devices.device import Device
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.training.precision.apex_o2 import ApexO2
from trainer.training.precision.loss_scale import DeviceScaledPrecision, ScaledPrecision
from trainer.training.precision.master_weights import CapturedO2, NativeO2
from trainer.training.precision.precision import Precision

__all__ = ["Precision", "capture_obstacle", "choose_precision", "precision_name"]


def choose_precision(config: TrainConfig, device: Device, *, captured: bool = False) -> Precision:
    """Return the arithmetic that `config.precision` means on `device`.

    O2 is apex's if apex for Ascend is installed, and the same without apex elsewhere.

    Args:
        captured: the device captures the steps, so that no arithmetic may wait for it: there is no
            `capture_obstacle`.

    Raises:
        UsageError: the device does not have this arithmetic.
    """
    name = precision_name(config, device)
    if name == "fp32":
        return Precision("fp32", device, None)
    if name == "bf16":
        if not device.has_bf16():
            raise UsageError(f"--precision bf16: {device.name()} has no bfloat16: use --precision O2 or fp16")
        return Precision("bf16", device, torch.bfloat16)
    if name == "fp16":
        scaled = DeviceScaledPrecision if captured else ScaledPrecision
        return scaled("fp16", device, torch.float16, config.loss_scale)
    if device.kind == "cpu":
        raise UsageError("--precision O2 needs an NPU: on a CPU use --precision fp32")
    if _has_apex(device):
        return ApexO2(device, config.loss_scale)
    return (CapturedO2 if captured else NativeO2)(device, config.loss_scale)


def capture_obstacle(config: TrainConfig, device: Device) -> str | None:
    """Return why a captured step cannot have the arithmetic of `config.precision`; None if it can."""
    if precision_name(config, device) == "O2" and _has_apex(device):
        return "apex's O2 reads each overflow on the host (fp16, bf16 and O2 without apex do not)"
    return None


def precision_name(config: TrainConfig, device: Device) -> str:
    """Return the arithmetic that `config.precision` means on `device`: fp32, bf16, fp16 or O2."""
    return device.default_precision if config.precision == "auto" else config.precision


def _has_apex(device: Device) -> bool:
    return device.kind == "npu" and importlib.util.find_spec("apex") is not None
