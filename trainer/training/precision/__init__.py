"""The arithmetic of a run, decided in one place: fp32, bf16 or fp16 autocast, or O2 by apex or without it."""

import importlib.util

import torch

from trainer.devices.device import Device
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.training.precision.apex_o2 import ApexO2
from trainer.training.precision.autocast import Autocast, ScaledAutocast
from trainer.training.precision.master_weights import NativeO2
from trainer.training.precision.policy import Precision

__all__ = ["Precision", "choose"]


def choose(config: TrainConfig, device: Device) -> Precision:
    """The policy that `config.precision` means on `device`.

    O2 is apex's where apex for Ascend is installed, and the same by our own means elsewhere.

    Raises:
        UsageError: the device cannot compute so.
    """
    wanted = device.default_precision if config.precision == "auto" else config.precision
    if wanted == "fp32":
        return Autocast(device, None)
    if wanted == "bf16":
        if not device.has_bf16():
            raise UsageError(f"--precision bf16: {device.name()} has no bfloat16: use --precision O2 or fp16")
        return Autocast(device, torch.bfloat16)
    if wanted == "fp16":
        return ScaledAutocast(device, config.loss_scale)
    if device.kind == "cpu":
        raise UsageError("--precision O2 needs an NPU: on a CPU use --precision fp32")
    if device.kind == "npu" and importlib.util.find_spec("apex") is not None:
        return ApexO2(config.loss_scale)
    return NativeO2(device, config.loss_scale)
