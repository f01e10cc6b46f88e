"""Steps whose time depends on the environment: NPU_EMULATED_STEP_MS="200 TASK_QUEUE_ENABLE=1:50 OTHER=2:90:reversed".

Each optimizer step sleeps as many milliseconds as the first number says, or as the entry says whose variable has that
value. With `reversed`, sums are added up from the other end (NPU_EMULATED_REDUCTIONS).
"""

import os
import time
from collections.abc import Mapping


def read_wait_s(environ: Mapping[str, str]) -> tuple[float, bool]:
    """Return the seconds that a step sleeps, and whether sums are reversed."""
    usual, *entries = environ.get("NPU_EMULATED_STEP_MS", "0").split()
    for entry in entries:
        setting, milliseconds, *reversed_ = entry.split(":")
        name, _, value = setting.partition("=")
        if environ.get(name) == value:
            return float(milliseconds) / 1e3, bool(reversed_)
    return float(usual) / 1e3, False


_WAIT_S, _REVERSED = read_wait_s(os.environ)


def plant_reversed_sums() -> None:
    """Set the variable that the emulation's library reads once."""
    if _REVERSED:
        os.environ["NPU_EMULATED_REDUCTIONS"] = "reversed"


def wait_in_step() -> None:
    """Sleep as long as each step does."""
    if _WAIT_S:
        time.sleep(_WAIT_S)
