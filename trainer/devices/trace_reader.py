"""Find the time of each operator in a trace of torch's profiler, and compress the trace: a process next to the worker.

Started by `trainer.devices.profiles`; it imports no torch. A GPU's work counts to the operator that started it.
"""

import gzip
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TRACE, _COMPRESSED = "trace.json", "trace.json.gz"
_OPERATORS = "cpu_op"
_ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_NUMBER = "External id"
"""The argument that a GPU's work shares with the operator that started it."""
Times = dict[str, tuple[float, int]]
"""Seconds and calls of each operator."""


def operator_times(events: Iterable[Mapping[str, Any]]) -> Times:
    """Return the times of the operators in the events of a trace, on the GPU if there is one."""
    events = [event for event in events if event.get("ph") == "X"]
    operators = [event for event in events if event.get("cat") == _OPERATORS]
    on_gpu = [event for event in events if event.get("cat") in _ON_GPU]
    if not on_gpu:
        return _own_times(operators)
    names = {event.get("args", {}).get(_NUMBER): event["name"] for event in operators}
    return _sums((names.get(event.get("args", {}).get(_NUMBER), event["name"]), event["dur"]) for event in on_gpu)


def _own_times(operators: Iterable[Mapping[str, Any]]) -> Times:
    """Return the times of operators without the time of the operators within them, thread by thread."""
    rows: list[tuple[str, float]] = []
    open_rows: dict[Any, list[list[Any]]] = defaultdict(list)  # thread -> [end, name, own time], the innermost last
    for event in sorted(operators, key=lambda event: (event["ts"], -event["dur"])):
        stack = open_rows[event.get("tid")]
        while stack and stack[-1][0] <= event["ts"]:
            _, name, own = stack.pop()
            rows.append((name, own))
        if stack:
            stack[-1][2] -= event["dur"]
        stack.append([event["ts"] + event["dur"], event["name"], event["dur"]])
    rows += [(name, own) for stack in open_rows.values() for _, name, own in stack]
    return _sums(rows)


def _sums(rows: Iterable[tuple[str, float]]) -> Times:
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for name, microseconds in rows:
        sums[name][0] += max(0.0, microseconds) / 1e6
        sums[name][1] += 1
    return {name: (seconds, int(calls)) for name, (seconds, calls) in sums.items()}


def print_result(trace: str, times: Times) -> None:
    """Print the last line, which `read_profile` reads."""
    rows = [(name, seconds, calls) for name, (seconds, calls) in times.items()]
    sys.stdout.write(json.dumps({"trace": trace, "operators": rows}) + "\n")


def main() -> int:
    """Read and compress the trace in a folder."""
    os.nice(10)  # after the training
    folder = Path(sys.argv[1])
    try:
        times = operator_times(json.loads((folder / _TRACE).read_bytes())["traceEvents"])
        with (folder / _TRACE).open("rb") as source, gzip.open(folder / _COMPRESSED, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        (folder / _TRACE).unlink()
    except (FileNotFoundError, ValueError):  # the profiler says nothing of a full disk
        sys.stderr.write("the trace is not whole; is the disk full?\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 1
    print_result(_COMPRESSED, times)
    return 0
