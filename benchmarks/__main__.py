"""All measurements, one after the other: `make bench`, and the most important ones in brief: `make bench-quick`.

Each benchmark is a process: the threads and the environment of one do not reach the next, and a failure ends only one.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.report import MISSED, NOT_MEASURED, QUICK_RESULTS, RESULTS, ROOT

ALL = (
    "step_counts",
    "model_step",
    "npu_host_work",
    "startup",
    "data_pipeline",
    "packed_data",
    "ddp",
    "checkpoint_save",
    "snapshot",
    "launcher_start",
    "submit",
    "follow",
    "large_cluster",
)
"""The modules of `make bench`, in the order of docs/performance.md."""
LONG = ("digits_accuracy",)
"""Modules that take longer than all others together: they run only by their names, and come last on that page."""
QUICK = ("step_counts", "model_step", "npu_host_work", "startup", "data_pipeline", "launcher_start")
"""The modules of the quick run: what most changes can make slower."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks and generate docs/performance.md; return 1 if one fails or misses a bar, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, with fewer turns")
    quick: bool = parser.parse_args(arguments).quick
    codes: dict[str, int] = {}
    try:
        for name in QUICK if quick else ALL:
            codes[name] = _run_module(f"benchmarks.{name}", *["--quick"] * quick)
    except KeyboardInterrupt:
        print(f"stopped; finished: {', '.join(codes) or 'no benchmark'}", file=sys.stderr)
    if not quick:
        _run_module("docs")
    print(f"results: {(QUICK_RESULTS if quick else RESULTS).relative_to(ROOT)}", file=sys.stderr)
    return _summarize(codes) if len(codes) == len(QUICK if quick else ALL) else 130


def _summarize(codes: dict[str, int]) -> int:
    words = {MISSED: "a bar is missed", NOT_MEASURED: "not measured"}
    for name, code in codes.items():
        if code:
            print(f"{name}: {words.get(code, f'failed with exit code {code}')}", file=sys.stderr)
    return 1 if set(codes.values()) - {0, NOT_MEASURED} else 0


def _run_module(module: str, *arguments: str) -> int:
    with subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal sent it Ctrl-C, too: it may have a cluster to stop
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
