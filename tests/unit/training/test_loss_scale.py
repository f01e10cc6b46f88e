"""A dynamic loss scale continues from the saved one; a fixed scale stays the run's own."""

from typing import Any

import pytest
import torch
from torch import nn

from trainer.devices.device import open_device
from trainer.training.precision.loss_scale import DeviceScaledPrecision, ScaledPrecision


def fp16(loss_scale: float | str) -> ScaledPrecision:
    return ScaledPrecision("fp16", open_device("cpu"), torch.float16, loss_scale)


def restored_scale(setting: float | str, state: dict[str, Any]) -> float:
    precision = fp16(setting)
    precision.load_state_dict(state)
    return float(precision.state_dict()["scale"])


@pytest.mark.parametrize(("setting", "expected"), [("dynamic", 4096.0), (128.0, 128.0)])
def test_a_fixed_scale_stays_the_runs_own_when_another_is_restored(setting: float | str, expected: float) -> None:
    adapted = {**fp16("dynamic").state_dict(), "scale": 4096.0}
    assert restored_scale(setting, adapted) == expected


@pytest.mark.parametrize(("setting", "scales"), [("dynamic", [8.0, 4.0, 4.0]), (128.0, [128.0] * 3)])
def test_a_scale_on_the_device_adapts_as_torchs_does_without_a_read(setting: float | str, scales: list[float]) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=torch.tensor(0.5), fused=True)
    precision = DeviceScaledPrecision("fp16", open_device("cpu"), torch.float16, setting)
    precision.load_state_dict({"scale": 4.0, "_growth_tracker": 1999})
    for scale, skipped, weight in zip(scales, (False, True, False), (0.5, 0.5, 0.0), strict=True):
        precision.update_weights(optimizer, torch.tensor(skipped))
        assert precision.state_dict()["scale"] == scale
        assert parameter.tolist() == [weight, weight]
