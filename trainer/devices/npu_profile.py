"""torch_npu's profiler over some steps of a process.

Written from torch_npu's sources, and run on an emulated NPU (tests/npu); it has never run on a real one.

Its functions raise no errors, but print them. It reads what it has recorded in forked processes, and changes how this
process would start others; so a separate process does that.
"""

import csv
import importlib
import os
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from trainer.devices.profiles import OperatorTime, read_profile
from trainer.devices.trace_reader import Times, print_result

RESULTS = "ASCEND_PROFILER_OUTPUT"
TRACE = "trace_view.json"
KERNELS = "kernel_details.csv"
KERNEL_TYPE, KERNEL_TIME = "Type", "Duration(us)"
"""The columns with a kernel's operator, and its time in microseconds."""
_TIME = re.compile(r"\s*\d+(\.\d+)?\s*", re.ASCII)


class NpuProfile:
    """A profile that begins with `start`, and ends by itself after `steps` calls of `step`.

    The folder that it makes has the layout that Huawei's MindStudio Insight opens. Its methods are written out although
    `TorchProfile` has the same: the tests collect from here what the product calls of torch_npu's profile.
    """

    def __init__(self, torch_npu: Any, folder: Path, steps: int) -> None:
        """Prepare it; `folder` gets the trace."""
        self._folder = folder
        self._profile = torch_npu.profiler.profile(
            activities=[torch_npu.profiler.ProfilerActivity.CPU, torch_npu.profiler.ProfilerActivity.NPU],
            schedule=torch_npu.profiler.schedule(wait=0, warmup=0, active=steps, repeat=1),
            on_trace_ready=torch_npu.profiler.tensorboard_trace_handler(str(folder), analyse_flag=False),
        )

    def start(self) -> None:
        """Begin the first step."""
        self._profile.start()

    def step(self) -> None:
        """Begin the next step; after the last one, stop."""
        self._profile.step()

    def stop(self) -> None:
        """Stop, if the last step has not ended yet."""
        self._profile.stop()

    def write(self) -> tuple[Path, list[OperatorTime]]:
        """Have the trace written; return its path and the time of each operator. It takes long: call it in a thread.

        Raises:
            RuntimeError: there is no trace.
        """
        return read_profile(__name__, self._folder)


def kernel_times(path: Path) -> Times:
    """Return the times of each kind of kernel; nothing if the file is missing."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                time = _TIME.fullmatch(row.get(KERNEL_TIME) or "")
                if time is not None:
                    times[row.get(KERNEL_TYPE) or "?"].append(float(time[0]) / 1e6)
    return {name: (sum(seconds), len(seconds)) for name, seconds in times.items()}


def main() -> int:
    """Have torch_npu read what it has recorded in a folder, in this process."""
    os.nice(10)  # after the training
    folder = Path(sys.argv[1])
    # Typed as Any: torch_npu has no stubs and is absent where the types are checked.
    torch_npu: Any = importlib.import_module("torch_npu")
    torch_npu.profiler.profiler.analyse(str(folder))
    trace = next(folder.glob(f"*/{RESULTS}/{TRACE}"), None)
    if trace is None:
        # Its own words are on both streams.
        sys.stderr.write("torch_npu has written no trace\n")
        return 1
    print_result(str(trace.relative_to(folder)), kernel_times(trace.with_name(KERNELS)))
    return 0
