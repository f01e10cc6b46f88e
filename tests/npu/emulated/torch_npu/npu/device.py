"""Devices: how many there are, and which one this process works on."""

import fcntl
import functools
import os
from pathlib import Path

import torch

from .._emulation import DEVICE_NAME, core, note_call

Which = int | str | torch.device | None

_forked = False


def _after_fork() -> None:
    global _forked  # noqa: PLW0603  # a process's own state
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def index_of(which: Which) -> int:
    """Return a device's number; for None, the current device's."""
    if isinstance(which, int):
        return which
    if which is None:
        return int(core.current_device())
    named = torch.device(which)
    if named.type != "npu":
        raise ValueError(f"Expected a npu device, but got: {named}")
    return int(core.current_device()) if named.index is None else named.index


def _is_in_bad_fork() -> bool:
    return _forked


def _lazy_init() -> None:
    if _forked:
        raise RuntimeError(
            "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must use the 'spawn' "
            "start method"
        )


def init() -> None:
    _lazy_init()


def is_initialized() -> bool:
    return not _forked


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return int(core.device_count())


def current_device() -> int:
    return int(core.current_device())


def set_device(device: Which) -> None:
    _lazy_init()
    note_call("set_device", device=index_of(device))
    _hold(index_of(device))
    core.set_device(index_of(device))


@functools.cache
def _hold(index: int) -> None:
    """Refuse a device that another process holds, if NPU_EMULATED_EXCLUSIVE names a folder for locks.

    CUDA's compute mode EXCLUSIVE_PROCESS does so; a device is held until its process ends.
    """
    folder = os.environ.get("NPU_EMULATED_EXCLUSIVE")
    if folder is None:
        return
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    lock = os.open(Path(folder, visible.split(",")[index] if visible else str(index)), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"npu:{index} is in use by another process") from None


def synchronize(device: Which = None) -> None:
    index_of(device)
    core.refuse_in_capture("synchronize")


def get_device_name(device_name: Which = None) -> str:
    index = index_of(device_name)
    device, _, name = os.environ.get("NPU_EMULATED_NAME", "").partition(":")
    return name if device == str(index) else DEVICE_NAME


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16, torch.float32]


def is_bf16_supported() -> bool:
    """Return False for a device that saturates: it is an Ascend 910A, which has no bfloat16."""
    return not core.saturates()


class device:  # noqa: N801  # its name
    """Makes a device the current one within a context."""

    def __init__(self, device: Which) -> None:
        self._index = index_of(device)
        self._before = 0

    def __enter__(self) -> None:
        self._before = current_device()
        core.set_device(self._index)

    def __exit__(self, *_error: object) -> None:
        core.set_device(self._before)
