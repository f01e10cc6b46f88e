"""What to do about a device: each kind has its own programs to look at it."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.topology.visible import DeviceKind


@dataclass(frozen=True)
class KindAdvice:
    """What to do, each in one line."""

    links: str
    """About a device whose sums with others are wrong or slow."""
    memory: str
    """About a device whose memory forgets."""
    load: str
    """About a device that is slow by itself."""
    kernels: str
    """Where kernels come from that do not repeat their results."""
    log: str
    """Where a driver says why a process has hung or died."""


ADVICE: Mapping[DeviceKind, KindAdvice] = {
    "npu": KindAdvice(
        links="look at its links (hccn_tool -i N -link -g, npu-smi info -t topo); else take it out of use",
        memory="take it out of use; npu-smi info -t ecc shows what its memory has counted",
        load="look at its temperature, its power and other programs on it (npu-smi info); else take it out of use",
        kernels="CANN",
        log="npu-smi info and dmesg",
    ),
    "cuda": KindAdvice(
        links="look at its links (nvidia-smi nvlink --status, nvidia-smi topo -m); else take it out of use",
        memory="take it out of use; nvidia-smi -q -d ECC shows what its memory has counted",
        load="look at its clock, its temperature and other programs on it (nvidia-smi -q); else take it out of use",
        kernels="cuDNN and torch",
        log="nvidia-smi and dmesg",
    ),
    "cpu": KindAdvice(
        links="look for other programs on this machine; else test its memory",
        memory="test this machine's memory, and take it out of use",
        load="look for other programs on this machine, and for its temperature",
        kernels="torch",
        log="dmesg",
    ),
}


def advice_for(place: str) -> KindAdvice:
    """Return the advice for a place by its name, such as `npu:3` or `node1/npu:0 node1/npu:1`."""
    return next(advice for kind, advice in ADVICE.items() if f"{kind}:" in place)
