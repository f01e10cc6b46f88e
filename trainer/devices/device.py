"""One small interface to the three kinds of device, so that nothing else of the trainer asks which one it runs on."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from trainer.devices.cpu import CpuDevice
from trainer.devices.cuda import CudaDevice
from trainer.devices.npu import NpuDevice


class Device(Protocol):
    """What training needs of a device."""

    kind: str
    """`npu`, `cuda` or `cpu`: torch's device type."""
    backend: str
    """The process group's backend."""
    pin_memory: bool
    """Whether batches go to the device from page-locked memory."""
    default_precision: str
    """What `--precision auto` means here."""

    def open(self, local_rank: int) -> torch.device:
        """Bind this process to its device; called before anything else touches a device."""
        ...

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Mixed precision for the forward pass."""
        ...

    def has_bf16(self) -> bool:
        """Whether the device computes in bfloat16."""
        ...

    def grad_scaler(self, *, init_scale: float) -> torch.amp.GradScaler:
        """The scaler that goes with fp16 autocast."""
        ...

    def seed(self, key: int) -> None:
        """Seed the device's default generator: what drop-path and dropout draw from."""
        ...

    def rng_state(self) -> torch.Tensor:
        """The device's default generator, uint8 (n,) on the CPU."""
        ...

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Go on from such a state."""
        ...

    def name(self) -> str:
        """The device's model, for the records."""
        ...

    def peak_memory_mib(self) -> float:
        """Peak memory of this process on the device, in MiB."""
        ...


def open_device(kind: str) -> Device:
    """The device interface of `kind`: `npu`, `cuda` or `cpu`.

    Raises:
        UsageError: the runtime of that kind is not installed.
    """
    kinds: dict[str, type[NpuDevice | CudaDevice | CpuDevice]] = {
        "npu": NpuDevice,
        "cuda": CudaDevice,
        "cpu": CpuDevice,
    }
    return kinds[kind]()
