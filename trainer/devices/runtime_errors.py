"""Errors of a device's runtime in plain words, with the next step.

Texts and codes come from torch_npu, HCCL and CANN (its EI, EJ and EE numbers). A line about a lost peer keeps the code
by which the supervisor recognises it as a consequence.
"""

import errno
import re

from trainer.shared.container import HIGHER_LIMIT, MORE_FILES, MORE_MEMORY, OUT_OF_MEMORY
from trainer.shared.device_errors import DEVICE_ERRORS
from trainer.shared.program import TRAINER

HCCL_FAILED = "HCCL failed in"
"""How the line about an error of HCCL's without a known reason begins: new processes might not meet it again."""

Rules = tuple[tuple[str, str], ...]

COMMON_RULES: Rules = (
    (
        r"out of memory\. Tried to allocate (?P<what>[\d.]+ [KMG]iB)",
        "the device is out of memory (tried to allocate {what}): lower --batch-size, compute it in parts with "
        "--micro-batch, or give --activation-checkpointing",
    ),
    (
        r"DefaultCPUAllocator: can't allocate memory.*?(?P<what>\d+ bytes)",
        "memory is short (tried to allocate {what}): lower --batch-size, compute it in parts with --micro-batch, or "
        "raise the limit (ulimit -v)",
    ),
    (
        r"(DataLoader worker|Bus error).*(shm|shared memory)",
        "/dev/shm is full: give the pod more, or lower --workers",
    ),
)

NPU_RULES: Rules = (
    *((error.pattern, f"{error.meaning} ({{what}}): {error.step}") for error in DEVICE_ERRORS if error.lasting),
    (r"HCCL function error: (?P<what>\w+)", HCCL_FAILED + " {what}: its own words follow"),
)
"""A rule without HCCL's or CANN's reason comes last."""

LIMIT_RULES: Rules = (
    (r"Too many open files", f"too many open files: {MORE_FILES}, or lower --workers"),
    (
        r"can't start new thread|unable to start \w+ thread|Resource temporarily unavailable",
        f"no further thread or process can start: {HIGHER_LIMIT[errno.EAGAIN]}, or lower --threads and --workers",
    ),
    (
        OUT_OF_MEMORY,
        f"out of memory: {MORE_MEMORY}, or lower --batch-size and --workers",
    ),
)

LOADING_RULES: Rules = (
    (
        r"(?P<what>lib\w+\.so)[\w.]*: cannot open shared object",
        "CANN's environment is not set ({what}): source its set_env.sh first",
    ),
    (
        r"undefined symbol: (?P<what>\w{1,80})",
        "torch_npu does not fit torch or CANN (undefined symbol {what}): {trainer} env says which go together",
    ),
    (
        r"No module named 'torch_npu'",
        "torch_npu is not installed: install the one for this CANN, which {trainer} env names, or use --device cpu",
    ),
)


def explain_runtime_error(text: str, device: str) -> str | None:
    """Return one line for the user about a runtime error of `device`; None if unknown."""
    return _first((*COMMON_RULES, *(NPU_RULES if device == "npu" else ()), *LIMIT_RULES), text)


def explain_loading_error(text: str) -> str | None:
    """Return the same for an error while torch_npu is loaded: a missing library is CANN's or the driver's."""
    return _first((*NPU_RULES, *LIMIT_RULES, *LOADING_RULES), text)


def _first(rules: Rules, text: str) -> str | None:
    for pattern, words in rules:
        match = re.search(pattern, text)
        if match is not None:
            return words.format(what=match.groupdict().get("what") or match[0], trainer=TRAINER)
    return None
