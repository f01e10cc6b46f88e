"""A loss scale goes on from where it was, unless the run has one of its own."""

from typing import Any

import pytest

from trainer.devices.device import open_device
from trainer.training.precision.loss_scale import LossScaler


def scale_of(given: float | str, state: dict[str, Any]) -> float:
    scaler = LossScaler(open_device("cpu"), given)
    scaler.load_state_dict(state)
    return float(scaler.state_dict()["scale"])


@pytest.mark.parametrize(("given", "goes_on_with"), [("dynamic", 4096.0), (128.0, 128.0)])
def test_a_fixed_scale_stays_the_runs_own_when_another_is_restored(given: float | str, goes_on_with: float) -> None:
    adapted = {**LossScaler(open_device("cpu"), "dynamic").state_dict(), "scale": 4096.0}
    assert scale_of(given, adapted) == goes_on_with
