"""All measurements, one after the other: `make bench`, and the most important ones in brief: `make bench-quick`.

Each benchmark is a process: the threads and the environment of one do not reach the next, and a failure ends only one.
Missing programs are installed and built first, without a limit, so that no measurement waits for them.
"""

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from benchmarks.report import MISSED, NOT_MEASURED, QUICK_RESULTS, RESULTS, ROOT
from trainer.shared.text import visible_bytes

ALL: Mapping[str, int] = {
    "step_counts": 30,
    "model_step": 280,
    "npu_host_work": 180,
    "startup": 90,
    "data_pipeline": 70,
    "packed_data": 100,
    "ddp": 35,
    "checkpoint_save": 110,
    "snapshot": 20,
    "launcher_start": 20,
    "submit": 70,
    "follow": 120,
    "large_cluster": 75,
}
"""The modules of `make bench`, in the order of docs/performance.md, and the seconds of each.

A module may also take the time that the ones before it have left over.
"""
LONG = ("compiled_step", "digits_accuracy")
"""Modules that take longer than all others together: they run only by their names, and come last on that page."""
QUICK: Mapping[str, int] = {
    "model_step": 68,
    "npu_host_work": 54,
    "startup": 26,
    "data_pipeline": 24,
    "launcher_start": 8,
}
"""The same for the quick run: what most changes can make slower. The counts of a step are held by tests."""
_CLEAN_UP_S = 30
"""The time that a benchmark has to stop its processes."""


class Outcome(NamedTuple):
    """How a module's process ended.

    Attributes:
        last_words: the last line that it wrote to standard error.
        limit_s: the limit at which it was stopped; None if it ended by itself.
    """

    code: int
    seconds: float = 0.0
    last_words: str = ""
    limit_s: float | None = None

    def __str__(self) -> str:
        """Return what a reader of the results must know."""
        if self.limit_s is not None:
            return f"failed: not done after {self.limit_s:.0f} s: {self.last_words}"
        texts = {0: "measured", MISSED: "measured: a bar is missed", NOT_MEASURED: self.last_words}
        return texts.get(self.code, f"failed with exit code {self.code}: {self.last_words}")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks and generate docs/performance.md; return 1 if one fails or misses a bar, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, with fewer turns")
    quick: bool = parser.parse_args(arguments).quick
    limits = QUICK if quick else ALL
    outcomes: dict[str, Outcome] = {}
    try:
        _run_module("benchmarks.peers", *limits)
        limit_s = 0.0
        for name, seconds in limits.items():
            limit_s += seconds
            outcomes[name] = _run_module(f"benchmarks.{name}", *["--quick"] * quick, limit_s=limit_s)
            limit_s = max(0.0, limit_s - outcomes[name].seconds)
    except KeyboardInterrupt:
        print(f"stopped; finished: {', '.join(outcomes) or 'no benchmark'}", file=sys.stderr)
    if not quick:
        _run_module("docs")
    for name, outcome in outcomes.items():
        print(f"{name:16}{outcome.seconds:5.0f} s  {outcome}", file=sys.stderr)
    print(f"results: {(QUICK_RESULTS if quick else RESULTS).relative_to(ROOT)}", file=sys.stderr)
    if len(outcomes) < len(limits):
        return 130
    return 1 if {outcome.code for outcome in outcomes.values()} - {0, NOT_MEASURED} else 0


def _run_module(module: str, *arguments: str, limit_s: float | None = None) -> Outcome:
    """Run a module to its end, or until it has taken `limit_s` seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr is not None
        errors: deque[bytes] = deque(maxlen=16)
        copying = threading.Thread(target=_copy, args=(process.stderr, errors), daemon=True)
        copying.start()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            last_words = _last_line(errors.copy())  # it will only say that it was stopped
            _stop(process)
            return Outcome(process.wait(), time.monotonic() - began, last_words, limit_s)
        except KeyboardInterrupt:
            process.wait()  # the terminal sent it Ctrl-C, too: it may have a cluster to stop
            raise
        finally:
            copying.join(1.0)  # a process that it has left behind may keep the pipe open
    return Outcome(process.returncode, time.monotonic() - began, _last_line(errors.copy()))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop it as Ctrl-C does, so that it can stop a cluster."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_CLEAN_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _copy(source: IO[bytes], newest: deque[bytes]) -> None:
    while block := source.read(1 << 16):
        newest.append(block)
        sys.stderr.write(block.decode(errors="replace"))
        sys.stderr.flush()


def _last_line(blocks: Sequence[bytes]) -> str:
    lines = re.split(rb"[\r\n]+", b"".join(blocks).strip())
    return visible_bytes(lines[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
