"""On which processors each rank's process stays: CPU_AFFINITY_CONF, from the topology that npu-smi reports.

Written from published outputs and from torch_npu's NPUAffinityController.cpp (2.9.0); not run on a real NPU.
"""

import os
from collections.abc import Collection, Mapping, Sequence

from trainer.devices.runtime_env import CPU_AFFINITY, EVENLY
from trainer.environment.hardware import by_local_rank
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.environment.parsing import parse_topology
from trainer.topology import Visible

TOPOLOGY_S = 5.0
"""How long the start of a run waits for the topology, which is worth no more; npu-smi mostly needs a second."""
_FEWEST = 2
"""Processors of a rank: its process has a thread that queues operators and one that launches them."""


def read_affinity(visible: Visible, npu_smi: NpuSmiProgram, environ: Mapping[str, str]) -> str:
    """Return the default of CPU_AFFINITY_CONF on this node: empty for none, `EVENLY` if the topology is unknown."""
    if visible.kind != "npu" or environ.get(CPU_AFFINITY, "").strip():
        return EVENLY
    try:
        topology = parse_topology(npu_smi.ask("info", "-t", "topo", timeout_s=TOPOLOGY_S))
    except OSError:
        return EVENLY
    near = by_local_rank(list(topology.items()), visible.ids)
    return affinity(list(near.values()), os.sched_getaffinity(0)) if near else EVENLY


def affinity(near: Sequence[tuple[int, ...]], allowed: Collection[int]) -> str:
    """Return CPU_AFFINITY_CONF for devices in torch's order; empty if a rank cannot stay near its device.

    torch_npu 2.9 keeps one range for a device, and binds no thread at all if the container lacks a processor of any
    range. So each rank's processors must be consecutive ones of the container.

    Args:
        near: The processors next to each device, ascending. Devices with the same ones share them by equal parts.
        allowed: The container's processors.
    """
    usable = [tuple(number for number in processors if number in allowed) for processors in near]
    ranges = []
    for index, processors in enumerate(usable):
        size, turn = len(processors) // usable.count(processors), usable[:index].count(processors)
        part = processors[turn * size : (turn + 1) * size]
        if len(part) < _FEWEST or part[-1] - part[0] != len(part) - 1:
            return ""
        ranges.append(f"npu{index}:{part[0]}-{part[-1]}")
    return ",".join((EVENLY, *ranges))
