"""One small interface to the three kinds of device, so that the rest of the trainer does not ask which one it has."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from trainer.devices.cpu import CpuDevice
from trainer.devices.cuda import CudaDevice
from trainer.devices.npu import NpuDevice


class Device(Protocol):
    """A device as training uses it."""

    kind: str
    """`npu`, `cuda` or `cpu`: torch's device type."""
    backend: str
    """The process group's backend."""
    pin_memory: bool
    """Whether batches go to the device from page-locked memory."""
    default_precision: str
    """What `--precision auto` means here."""

    def open(self, local_rank: int) -> torch.device:
        """Bind this process to its device. This must be the first use of a device."""
        ...

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return the context of a forward pass in mixed precision."""
        ...

    def has_bf16(self) -> bool:
        """Return whether the device computes in bfloat16."""
        ...

    def grad_scaler(self, *, init_scale: float) -> torch.amp.GradScaler:
        """Return the scaler for fp16 autocast."""
        ...

    def seed(self, key: int) -> None:
        """Seed the device's default generator, from which drop-path and dropout draw."""
        ...

    def rng_state(self) -> torch.Tensor:
        """Return the state of the device's default generator, uint8 (n,) on the CPU."""
        ...

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Restore such a state."""
        ...

    def name(self) -> str:
        """Return the device's model, for the records."""
        ...

    def peak_memory_mib(self) -> float:
        """Return the peak memory of this process on the device, in MiB."""
        ...


def open_device(kind: str) -> Device:
    """Return the device interface of `kind`: `npu`, `cuda` or `cpu`.

    Raises:
        UsageError: the runtime of that kind is not installed.
    """
    kinds: dict[str, type[NpuDevice | CudaDevice | CpuDevice]] = {
        "npu": NpuDevice,
        "cuda": CudaDevice,
        "cpu": CpuDevice,
    }
    return kinds[kind]()
