"""Each device's default generator."""

from torch import Tensor

from .._emulation import core
from .device import Which, current_device, device_count, index_of


def manual_seed(seed: int) -> None:
    core.default_generator(current_device()).manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed all devices at once; the real one seeds a device when it is opened."""
    for index in range(device_count()):
        core.seed_closed(index, int(seed))


def seed() -> int:
    return int(core.default_generator(current_device()).seed())


def initial_seed() -> int:
    return int(core.default_generator(current_device()).initial_seed())


def get_rng_state(device: Which = "npu") -> Tensor:
    state: Tensor = core.default_generator(index_of(device)).get_state()
    return state


def set_rng_state(new_state: Tensor, device: Which = "npu") -> None:
    core.default_generator(index_of(device)).set_state(new_state)
