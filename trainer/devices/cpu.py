"""A CPU as a device, over gloo: for laptops and tests."""

import platform
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.devices.profiles import TorchProfile


class CpuDevice:
    """One process and its share of the machine's cores."""

    kind = "cpu"
    """torch's device type."""
    backend = "gloo"
    """The process group's backend."""
    pin_memory = False
    """Whether batches go to the device from page-locked memory."""
    default_precision = "fp32"
    """What `--precision auto` means on the device."""
    memory_format = "nhwc"
    """What `--memory-format auto` means on the device."""

    def open(self, local_rank: int) -> torch.device:
        """Bind the process to its device, before any other use of one: here the CPU, which all ranks share."""
        return torch.device("cpu")

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return torch's mixed precision on a CPU."""
        return torch.autocast("cpu", dtype=dtype)

    def has_bf16(self) -> bool:
        """Return True: every CPU computes in bfloat16, some slowly."""
        return True

    def rounds_fp32(self) -> bool:
        """Return whether the device may round the operands of convolutions or matrix products in fp32."""
        return False

    def grad_scaler(self, *, init_scale: float) -> torch.amp.GradScaler:
        """Return torch's scaler."""
        return torch.amp.GradScaler("cpu", init_scale=init_scale)

    def seed(self, key: int) -> None:
        """Seed the default generator, from which drop-path and dropout draw.

        `torch.manual_seed` would also visit every accelerator, and costs 200 us.
        """
        torch.default_generator.manual_seed(key)

    def rng_state(self) -> Tensor:
        """Return the default generator's state, uint8 (n,) on the CPU."""
        state: Tensor = torch.get_rng_state()
        return state

    def set_rng_state(self, state: Tensor) -> None:
        """Restore such a state."""
        torch.set_rng_state(state)

    def name(self) -> str:
        """Return the processor's architecture: more would cost a process, since Linux tells it to `uname -p`."""
        return platform.machine()

    def peak_memory_mib(self) -> float:
        """Return the peak resident memory of the process, in MiB (Linux counts KiB)."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the whole memory of the machine."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def new_event(self) -> Any:
        """Return None: a CPU has done its work when a call returns."""
        return None

    def profile(self, folder: Path, steps: int) -> TorchProfile:
        """Return a profile of the process, which begins when it is started; `folder` gets its trace."""
        return TorchProfile(folder, steps)

    def graph_obstacle(self) -> str | None:
        """Return why the device cannot capture work as a graph; None if it can."""
        return "a CPU has no graphs"

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without doing it, and return the call that does it.

        It must not wait for the device, and reads and writes the same memory each time.

        Raises:
            RuntimeError: the device cannot capture the work.
        """
        raise RuntimeError(self.graph_obstacle())
