"""Memory in which a bit flips: NPU_EMULATED_FLIP=DEVICE:STEP:PART, several with commas between them.

In the STEP-th step of the process on the device npu:DEVICE, one bit of PART (`weights`, `momentum` or `gradient`) is
flipped. The bit is drawn from a generator with a fixed seed.
"""

import os
import random
from typing import Any

import torch
from torch import Tensor

SEED = 4
BITS = range(16, 23)
"""Bits of an fp32 number's fraction that no rounding hides, and that leave it finite."""


class FaultyMemory:
    """Counts the steps of one optimizer."""

    def __init__(self) -> None:
        words = filter(None, os.environ.get("NPU_EMULATED_FLIP", "").split(","))
        self._faults = [(int(device), int(step), part) for device, step, part in (word.split(":") for word in words)]
        self._random = random.Random(SEED)
        self._calls = 0

    def flip(self, optimizer: Any, *parts: str) -> None:
        """Flip a bit in `parts` of the optimizer's tensors, if it is time; a step begins with the gradient."""
        self._calls += parts == ("gradient",)
        device = torch.npu.current_device()  # type: ignore[attr-defined]  # torch_npu adds it
        for number, step, part in self._faults:
            if (number, step) == (device, self._calls) and part in parts:
                parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                self._flip_one(max(parameters, key=torch.numel), part, optimizer)

    def _flip_one(self, parameter: Tensor, part: str, optimizer: Any) -> None:
        tensor = {
            "weights": parameter,
            "momentum": optimizer.state[parameter].get("momentum_buffer"),
            "gradient": parameter.grad,
        }[part]
        assert tensor is not None
        words = tensor.detach().view(-1).view(torch.int32)
        words[self._random.randrange(len(words))] ^= 1 << self._random.choice(BITS)
