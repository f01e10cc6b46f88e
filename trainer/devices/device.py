"""The device that a process trains on. Its kinds have the same methods, so that the trainer does not ask for the kind.

To add a kind, write a class like `CpuDevice`, and enter it here.
"""

from trainer.devices.cpu import CpuDevice
from trainer.devices.cuda import CudaDevice
from trainer.devices.npu import NpuDevice
from trainer.devices.npu_profile import NpuProfile
from trainer.devices.profiles import TorchProfile

Device = CpuDevice | CudaDevice | NpuDevice
DeviceProfile = TorchProfile | NpuProfile


def open_device(kind: str) -> Device:
    """Return the device of `kind`: `npu`, `cuda` or `cpu`.

    Raises:
        UsageError: the runtime of that kind is not installed.
    """
    kinds: dict[str, type[Device]] = {"npu": NpuDevice, "cuda": CudaDevice, "cpu": CpuDevice}
    return kinds[kind]()
