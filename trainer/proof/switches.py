"""The switches that `prove --tune` tries on each kind of device, and the values next to the present one.

Sources: torch_npu's pages on environment variables, HCCL's page on HCCL_OP_EXPANSION_MODE, PyTorch's on CUDA, and the
tuning pages of vllm-ascend and MindSpeed. No table of chips stands here: a value that a device or its library does not
know is refused when it is tried, with the library's own reason. Run on an emulated NPU and on CPUs only.
"""

import ctypes.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trainer.devices.runtime_env import CPU_AFFINITY, ENABLE, EVENLY, INTERNAL_FORMAT, JIT_COMPILE
from trainer.shared.config import TrainConfig
from trainer.shared.container import MOST_LOADERS
from trainer.topology.visible import DeviceKind

_ALLOCATORS = ("jemalloc", "tcmalloc_minimal", "tcmalloc")
_COMPOSED = ("LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_NPU_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of several parts: another value would drop the parts that the user has set."""
_HOT_THREADS, _UNBOUND = "2", "0"
"""Modes of CPU_AFFINITY_CONF, before its ranges; torch_npu's page advises the first."""


@dataclass(frozen=True)
class Switch:
    """A setting, and the values to try.

    Attributes:
        name: The field of an option, such as `workers`, or a variable of the environment.
        reason: Why a value may be faster.
    """

    name: str
    values: tuple[str, ...]
    reason: str


def is_environment_variable(name: str) -> bool:
    """Return whether a setting of this name is a variable of the environment, and not an option."""
    return name.isupper()


_HOST_TIME = "the step may wait for the host, which queues thousands of operators"
_NPU = (
    Switch("TASK_QUEUE_ENABLE", ("1", "2"), f"{_HOST_TIME}; 2 also queues their tiling"),
    Switch(INTERNAL_FORMAT, (ENABLE,), "convolutions need no change of the format of their tensors"),
    Switch(JIT_COMPILE, (ENABLE,), "kernels that are compiled for the sizes of tensors"),
    Switch("PER_STREAM_QUEUE", ("1",), "copies to the device get their own queue"),
    Switch("TORCH_NPU_LAZY_FUSION", ("True",), f"{_HOST_TIME}; small ones become one"),
    Switch("COMBINED_ENABLE", ("1",), "copies of views that are not contiguous become one"),
    Switch("ACLNN_CACHE_LIMIT", ("100000",), "the host remembers the tiling of more operators"),
    Switch("PYTORCH_NPU_ALLOC_CONF", ("expandable_segments:True",), "less fragmented memory needs fewer waits"),
    Switch("MULTI_STREAM_MEMORY_REUSE", ("1", "2"), "memory of collectives is free earlier"),
)
_NPUS = (
    Switch("HCCL_OP_EXPANSION_MODE", ("AIV",), "vector cores start collectives, not the host"),
    Switch("HCCL_BUFFSIZE", ("400",), "larger parts of collectives"),
)
_CUDA = (
    Switch("PYTORCH_CUDA_ALLOC_CONF", ("expandable_segments:True",), "less fragmented memory needs fewer waits"),
    Switch("CUDA_DEVICE_MAX_CONNECTIONS", ("1", "32"), "queues between the host and the device"),
)
_CPU = (
    Switch("GLIBC_TUNABLES", ("glibc.malloc.hugetlb=1",), "fewer pages for large maps"),
    Switch("OMP_PROC_BIND", ("close",), "threads stay on their cores"),
)


def switches_of(
    kind: DeviceKind,
    config: TrainConfig,
    environ: Mapping[str, str],
    *,
    devices: int,
    processors: int,
    affinity: str,
) -> tuple[Switch, ...]:
    """Return the switches that mean something for these devices, with the values that a run does not have already.

    Args:
        config: The user's settings.
        environ: The user's variables.
        processors: The CPUs of each device's process.
        affinity: CPU_AFFINITY_CONF as a run would set it; empty for none.
    """
    present = {
        "workers": str(min(MOST_LOADERS, processors) if config.workers is None else config.workers),
        "threads": str(config.threads or processors),
        "graph": config.graph,
        "compile": str(config.compile).lower(),
        "bucket_mib": str(config.bucket_mib),
        "memory_format": "nhwc" if config.memory_format == "auto" else config.memory_format,
        "TASK_QUEUE_ENABLE": "2",
        CPU_AFFINITY: affinity or _UNBOUND,
        **environ,
    }
    untried = (
        replace(switch, values=tuple(value for value in switch.values if value != present.get(switch.name)))
        for switch in _known_switches(kind, devices=devices, processors=processors, affinity=affinity)
        if not (switch.name in _COMPOSED and environ.get(switch.name))
    )
    return tuple(switch for switch in untried if switch.values)


def _known_switches(kind: DeviceKind, *, devices: int, processors: int, affinity: str) -> Iterator[Switch]:
    if kind == "npu":
        bound = f"{_HOT_THREADS}{affinity[len(EVENLY) :]}"
        yield Switch(CPU_AFFINITY, (bound, _UNBOUND), "the threads that launch operators get their own cores")
    yield from {"npu": _NPU, "cuda": _CUDA, "cpu": _CPU}[kind]
    if kind == "npu" and devices > 1:
        yield from _NPUS
    if kind != "cpu":
        yield Switch("graph", ("on",), f"{_HOST_TIME}; a captured step is queued at once")
    if devices > 1:
        yield Switch("bucket_mib", ("10", "100"), "exchanges of gradients begin earlier, or are fewer")
    if kind == "cuda":  # on a CPU, whose runs repeat bit for bit, its other roundings are refused after minutes
        yield Switch("compile", ("true",), "kernels that do the work of several; a start takes minutes")
    if kind != "npu":
        yield Switch("memory_format", ("nchw", "nhwc"), "kernels for convolutions differ by the layout of maps")
    if library := next(filter(None, map(ctypes.util.find_library, _ALLOCATORS)), None):
        yield Switch("LD_PRELOAD", (library,), "another allocator of the host's memory")
    yield Switch("workers", _up_to(processors, 0, 2, 4, 8, 16), "loaders may be too few, or take the step's cores")
    yield Switch(
        "threads", _up_to(processors, 1, max(1, processors // 2), processors), "threads may wait for each other"
    )


def _up_to(most: int, *counts: int) -> tuple[str, ...]:
    return tuple(str(count) for count in sorted(set(counts)) if count <= most)
