"""The environment that a device's runtime reads when a worker loads it.

Variables that the administrator has set stay as they are.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError

CPU_AFFINITY = "CPU_AFFINITY_CONF"
EVENLY = "1"
"""CPU_AFFINITY's mode 1 without ranges. torch_npu divides all processors of the machine by the visible devices
(NPUAffinityController.cpp, 2.9.0): each process has its own, which need not be the ones next to its NPU."""
INTERNAL_FORMAT, JIT_COMPILE, ENABLE = "ALLOW_INTERNAL_FORMAT", "ACL_OP_JIT_COMPILE", "enable"
"""Variables of this program: tensors in the chip's own formats, kernels that are compiled for the sizes of tensors."""
HCCL_EXEC_TIMEOUT_S = 1836
"""HCCL's default: 27 times 68 s, since an Ascend 910A counts in multiples of 68 s; on later chips 0 means for ever."""
HCCL_CONNECT, KERNEL_CACHE = "HCCL_CONNECT_TIMEOUT", "ACL_OP_COMPILER_CACHE_DIR"
HCCL_STEP_S = 68
HCCL_LONGEST_S = 17_340
HCCL_CONNECT_TIMEOUT_S = 600
"""Ranks start at different times, and the first collective waits for the last of them."""
HCCL_SHORTEST_CONNECT_S = 120
CANN_LOG_FILES = 2
"""Files of 20 MiB that a process of CANN keeps of each of its logs (default: 10): six logs, so at most 240 MiB."""
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""glibc's malloc gives a freed block of 32 MiB and more back to the system, and the next step waits for each of its
pages again: 250,000 page faults in a step of the large network at two images. With these it keeps the memory (mallopt's
manual page: -1 disables trimming). The peak of a step is the same within 5 %, since the next step needs as much. Few
large maps can need more: glibc cannot always use an aligned block again for one of its size (its bug 30723)."""
_LONGEST_LOG_PATH = 200
"""CANN cuts longer paths, and would write to another folder."""
WATCHDOG_MARGIN_S = 300.0
"""Seconds by which a collective may outlast the watchdog, which can name the missing rank and must be first."""


def runtime_environment(
    device: str,
    config: TrainConfig,
    run: Path,
    environ: Mapping[str, str],
    *,
    evidence: Path,
    rank: int,
    affinity: str = EVENLY,
) -> dict[str, str]:
    """Return the variables for a worker of `device` that `environ` does not set, or sets to blank.

    Args:
        evidence: The folder for the node's logs and memory snapshots.
        affinity: CPU_AFFINITY_CONF on this node; empty for none.

    Raises:
        UsageError: one of HCCL's timeouts is not a number.
    """
    if device == "cpu":
        return {} if _tunes_freed_memory(environ) else dict(KEEP_FREED_MEMORY)
    if device != "npu":
        return {}
    defaults = {
        # Level 2 also queues the tiling of operators.
        "TASK_QUEUE_ENABLE": "2",
        # Each process on separate processors, and its loaders with it, as the seed did with taskset.
        **({CPU_AFFINITY: affinity} if affinity else {}),
        # If the output folder outlives the pod, so do compiled operators.
        KERNEL_CACHE: str(run.parent / ".ascend-kernels"),
    }
    logs = _log_variables(evidence, rank, environ)
    return _unset({**defaults, **logs}, environ) | hccl_timeouts(config.stall_timeout_s, environ)


def _tunes_freed_memory(environ: Mapping[str, str]) -> bool:
    """Return whether the administrator has chosen what malloc keeps; a part of KEEP_FREED_MEMORY would undo it."""
    names = (*KEEP_FREED_MEMORY, "MALLOC_MMAP_THRESHOLD_")
    return "glibc.malloc" in environ.get("GLIBC_TUNABLES", "") or any(environ.get(name, "").strip() for name in names)


def _log_variables(evidence: Path, rank: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return where CANN writes its log and torch_npu its memory snapshots, in the layout that ascend-fd reads.

    ASCEND_LOG_SYNC_SAVE keeps its default: on a slow disk CANN's log loses lines, and training does not wait.
    """
    variables = {"ASCEND_HOST_LOG_FILE_NUM": str(CANN_LOG_FILES), "OOM_SNAPSHOT_PATH": str(evidence)}
    logs = str(evidence / "process_log" / f"rank-{rank}")
    # CANN writes its log below ASCEND_WORK_PATH if that is set: the administrator has chosen the place.
    if len(logs) <= _LONGEST_LOG_PATH and not environ.get("ASCEND_WORK_PATH", "").strip():
        variables["ASCEND_PROCESS_LOG_PATH"] = logs
    return variables


def hccl_timeouts(stall_timeout_s: float, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the HCCL timeouts that `environ` does not set.

    Of all timeouts together, each is longer than the one before: the time to connect, the time of a collective, and
    torch_npu's. torch_npu waits longer than HCCL, so that HCCL can say why.

    Raises:
        UsageError: the time to connect or the time of a collective is not a number.
    """
    connect_s, exec_s = (hccl_seconds(name, environ) for name in (HCCL_CONNECT, "HCCL_EXEC_TIMEOUT"))
    if exec_s is None:
        # Longer than the watchdog's limit, which can name the missing rank, and than the time to connect.
        needed = math.ceil((stall_timeout_s + WATCHDOG_MARGIN_S) / HCCL_STEP_S) * HCCL_STEP_S
        longer = ((connect_s or 0) // HCCL_STEP_S + 1) * HCCL_STEP_S
        exec_s = min(max(HCCL_EXEC_TIMEOUT_S, needed, longer), HCCL_LONGEST_S)
    if connect_s is None:
        connect_s = HCCL_CONNECT_TIMEOUT_S
        if exec_s:  # 0 is for ever
            # One step below the time of a collective, since an Ascend 910A rounds down.
            below = (exec_s // HCCL_STEP_S - 1) * HCCL_STEP_S
            connect_s = min(max(HCCL_SHORTEST_CONNECT_S, below), connect_s)
    # If HCCL waits for ever, torch_npu keeps its own limit.
    event = {"HCCL_EVENT_TIMEOUT": str(exec_s + HCCL_STEP_S)} if exec_s else {}
    return _unset({HCCL_CONNECT: str(connect_s), "HCCL_EXEC_TIMEOUT": str(exec_s), **event}, environ)


def hccl_seconds(name: str, environ: Mapping[str, str]) -> int | None:
    """Return the administrator's value of an HCCL timeout; None if unset.

    Raises:
        UsageError: it is not a number.
    """
    text = environ.get(name, "").strip()
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"{name}={text[:80]} is not a whole number of seconds: correct or unset it")
    return int(text) if text else None


def openmp_threads(environ: Mapping[str, str]) -> str | None:
    """Return the administrator's OMP_NUM_THREADS; None if it is unset or blank.

    OpenMP also takes a list, with the threads of nested regions. It ignores other values, and then takes all CPUs.

    Raises:
        UsageError: it is not a number of at least 1, or a list of such numbers.
    """
    text = environ.get("OMP_NUM_THREADS", "").strip()
    if text and not re.fullmatch(r"0*[1-9][0-9]{0,3}(\s*,\s*0*[1-9][0-9]{0,3})*", text, re.ASCII):
        raise UsageError(f"OMP_NUM_THREADS={text[:80]} is not a number of threads: correct or unset it")
    return text or None


def _unset(defaults: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in defaults.items() if not environ.get(name, "").strip()}
