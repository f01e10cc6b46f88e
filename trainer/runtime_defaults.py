"""What a device's runtime reads from the environment when it is loaded, within a worker.

Whatever the administrator has set stays as it is.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from trainer.config import TrainConfig
from trainer.errors import UsageError

HCCL_EXEC_TIMEOUT_S = 1836
"""HCCL's own, in multiples of 68 s as an Ascend 910A counts them (27 of them); 0 would be for ever on later chips."""
HCCL_STEP_S = 68
HCCL_LONGEST_S = 17_340
WATCHDOG_MARGIN_S = 300.0


def runtime_defaults(device: str, config: TrainConfig, run: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a worker of `device`; those that `environ` has, and not blank, are not among them.

    Raises:
        UsageError: HCCL_EXEC_TIMEOUT is no number.
    """
    if device != "npu":
        return {}
    given_s = hccl_limit_s(environ)
    limit_s = collective_limit_s(config.stall_timeout_s) if given_s is None else given_s
    # torch_npu waits longer than HCCL, so that HCCL can say why; where HCCL waits for ever it keeps its own limit.
    event = {"HCCL_EVENT_TIMEOUT": str(limit_s + HCCL_STEP_S)} if limit_s else {}
    defaults = {
        **event,
        # Level 2 also queues the tiling of operators.
        "TASK_QUEUE_ENABLE": "2",
        # Each process on the cores next to its NPU, and its loaders with it, as the seed did with taskset.
        "CPU_AFFINITY_CONF": "1",
        # Ranks start apart: the first collective waits for the last of them.
        "HCCL_CONNECT_TIMEOUT": "600",
        "HCCL_EXEC_TIMEOUT": str(limit_s),
        # Compiled operators outlive the pod where the output folder does.
        "ACL_OP_COMPILER_CACHE_DIR": str(run.parent / ".ascend-kernels"),
    }
    return {name: value for name, value in defaults.items() if not environ.get(name, "").strip()}


def hccl_limit_s(environ: Mapping[str, str]) -> int | None:
    """What the administrator says of HCCL's longest wait, 0 for ever; None for nothing.

    Raises:
        UsageError: it is no number.
    """
    text = environ.get("HCCL_EXEC_TIMEOUT", "").strip()
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"HCCL_EXEC_TIMEOUT={text[:80]}: is not a whole number of seconds: correct or unset it")
    return int(text) if text else None


def collective_limit_s(stall_timeout_s: float) -> int:
    """How long HCCL may wait: longer than the watchdog, which can say which rank is missing."""
    needed = math.ceil((stall_timeout_s + WATCHDOG_MARGIN_S) / HCCL_STEP_S) * HCCL_STEP_S
    return min(max(HCCL_EXEC_TIMEOUT_S, needed), HCCL_LONGEST_S)
