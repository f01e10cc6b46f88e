"""A dynamic loss scale continues from the saved one; a fixed scale stays the run's own."""

from typing import Any

import pytest
import torch

from trainer.devices.device import open_device
from trainer.training.precision.loss_scale import ScaledPrecision


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
