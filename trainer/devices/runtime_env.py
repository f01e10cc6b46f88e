"""What a device's runtime reads from the environment when it is loaded, within a worker.

Whatever the administrator has set stays as it is.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError

HCCL_EXEC_TIMEOUT_S = 1836
"""HCCL's own, in multiples of 68 s as an Ascend 910A counts them (27 of them); 0 would be for ever on later chips."""
HCCL_STEP_S = 68
HCCL_LONGEST_S = 17_340
HCCL_CONNECT_TIMEOUT_S = 600
"""Ranks start apart: the first collective waits for the last of them."""
HCCL_SHORTEST_CONNECT_S = 120
WATCHDOG_MARGIN_S = 300.0


def runtime_defaults(device: str, config: TrainConfig, run: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a worker of `device`; those that `environ` has, and not blank, are not among them.

    Raises:
        UsageError: one of HCCL's timeouts is no number.
    """
    if device != "npu":
        return {}
    defaults = {
        # Level 2 also queues the tiling of operators.
        "TASK_QUEUE_ENABLE": "2",
        # Each process on the cores next to its NPU, and its loaders with it, as the seed did with taskset.
        "CPU_AFFINITY_CONF": "1",
        # Compiled operators outlive the pod where the output folder does.
        "ACL_OP_COMPILER_CACHE_DIR": str(run.parent / ".ascend-kernels"),
    }
    return _unset(defaults, environ) | hccl_defaults(config.stall_timeout_s, environ)


def hccl_defaults(stall_timeout_s: float, environ: Mapping[str, str]) -> dict[str, str]:
    """Those of HCCL's timeouts that `environ` leaves out, so that with those it has each is longer than the one before.

    The time to connect, the time of a collective, and torch_npu's: it waits longer than HCCL, so that HCCL can say why.

    Raises:
        UsageError: the time to connect or that of a collective is no number.
    """
    connect_s, exec_s = (hccl_seconds(name, environ) for name in ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT"))
    if exec_s is None:
        exec_s = _collective_limit_s(stall_timeout_s, connect_s or 0)
    if connect_s is None:
        connect_s = _connect_limit_s(exec_s)
    # Where HCCL waits for ever, torch_npu keeps its own limit.
    event = {"HCCL_EVENT_TIMEOUT": str(exec_s + HCCL_STEP_S)} if exec_s else {}
    return _unset({"HCCL_CONNECT_TIMEOUT": str(connect_s), "HCCL_EXEC_TIMEOUT": str(exec_s), **event}, environ)


def hccl_seconds(name: str, environ: Mapping[str, str]) -> int | None:
    """What the administrator says of one of HCCL's timeouts; None for nothing.

    Raises:
        UsageError: it is no number.
    """
    text = environ.get(name, "").strip()
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"{name}={text[:80]} is not a whole number of seconds: correct or unset it")
    return int(text) if text else None


def _unset(defaults: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in defaults.items() if not environ.get(name, "").strip()}


def _collective_limit_s(stall_timeout_s: float, connect_s: int) -> int:
    """Longer than the watchdog, which can say which rank is missing, and than the time to connect."""
    needed = math.ceil((stall_timeout_s + WATCHDOG_MARGIN_S) / HCCL_STEP_S) * HCCL_STEP_S
    longer = (connect_s // HCCL_STEP_S + 1) * HCCL_STEP_S
    return min(max(HCCL_EXEC_TIMEOUT_S, needed, longer), HCCL_LONGEST_S)


def _connect_limit_s(exec_s: int) -> int:
    """A step below the time of a collective, as an Ascend 910A rounds it down; 0 is for ever."""
    if not exec_s:
        return HCCL_CONNECT_TIMEOUT_S
    below = (exec_s // HCCL_STEP_S - 1) * HCCL_STEP_S
    return min(max(HCCL_SHORTEST_CONNECT_S, below), HCCL_CONNECT_TIMEOUT_S)
