"""The device of a check process, opened once, and the check that it opens."""

import functools

import torch

from trainer.devices.device import Device, open_device
from trainer.proof.check import CheckOutcome, CheckPlace, Context
from trainer.proof.comparison import MEMORY


@functools.cache
def opened(place: CheckPlace) -> tuple[Device, torch.device]:
    """Return the process's device, opened at the first call.

    Raises:
        RuntimeUnusableError: its runtime cannot be loaded, or has no such device.
    """
    runtime = open_device(place.kind)
    return runtime, runtime.open(place.devices[place.rank])


def prove_open(context: Context) -> CheckOutcome:
    """Open the device, ask for its memory, and add two numbers on it."""
    runtime, device = opened(context.place)
    total = float((torch.ones(1, device=device) + 1).cpu())
    if total != 2.0:
        return CheckOutcome("failed", f"1 + 1 = {total:g}", "2", "replace the device")
    figures = {MEMORY: runtime.memory_bytes()[1] / 2**20}
    return CheckOutcome("passed", runtime.name(), "the device opens", figures=figures)
