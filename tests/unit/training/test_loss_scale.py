"""A dynamic loss scale continues from the saved one; a fixed scale stays the run's own."""

from typing import Any

import pytest

from trainer.devices.device import open_device
from trainer.training.precision.loss_scale import LossScaler


def restored_scale(setting: float | str, state: dict[str, Any]) -> float:
    scaler = LossScaler(open_device("cpu"), setting)
    scaler.load_state_dict(state)
    return float(scaler.state_dict()["scale"])


@pytest.mark.parametrize(("setting", "expected"), [("dynamic", 4096.0), (128.0, 128.0)])
def test_a_fixed_scale_stays_the_runs_own_when_another_is_restored(setting: float | str, expected: float) -> None:
    adapted = {**LossScaler(open_device("cpu"), "dynamic").state_dict(), "scale": 4096.0}
    assert restored_scale(setting, adapted) == expected
