"""`make test`: the checks and every test, side by side; their reports one by one as they end.

What is tested on a cluster waits most of its time, for pods to start and to end, and takes longest: it comes first, and
all else has what it leaves of the processors. Options for all tests come by PYTEST_ADDOPTS.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

CLUSTER = Path("tests/cluster")
SECOND_CLUSTER = [
    str(CLUSTER / f"test_{name}.py")
    for name in (
        *("volcano", "launcher_volcano", "ranktable_writer", "recorded_ranktables", "rotation", "rights"),
        *("the_chart", "the_image", "the_quickstart", "playground"),
    )
]
LOCAL = Path("tests/local")
KILLED = [str(LOCAL / f"test_{name}.py") for name in ("kill_points", "resume")]
PYTEST = (sys.executable, "-m", "pytest", "--durations=15")
LATER = ("nice", "-n", "5", *PYTEST)
COMMANDS: dict[str, Sequence[str | Path]] = {
    "checks": ("make", "--no-print-directory", "check"),
    "one cluster": (*PYTEST, CLUSTER, *(f"--ignore={path}" for path in SECOND_CLUSTER)),
    "another cluster": (*PYTEST, *SECOND_CLUSTER),
    "killed runs": (*LATER, *KILLED),
    "whole runs": (*LATER, LOCAL, *(f"--ignore={path}" for path in KILLED)),
    "the rest": (*LATER, "tests", f"--ignore={CLUSTER}", f"--ignore={LOCAL}"),
}
LOOK_EVERY_S = 0.5
SAY_EVERY_S = 60
INTERRUPTED = 130


class Run:
    """One of them, and what it has said so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", report: Path) -> None:
        self.process = process
        self._report = report

    @property
    def said(self) -> str:
        """All of it."""
        return self._report.read_text(errors="replace")

    @property
    def share(self) -> str:
        """How much of it is done, by pytest's own words."""
        return next(reversed(re.findall(r"\[ *(\d+%)\]", self.said)), "begun")


def main() -> int:
    """Run them; the highest exit code, which is 0 if all have passed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = {name: stack.enter_context(_started(words, Path(folder) / name)) for name, words in COMMANDS.items()}
        _say(f"{', '.join(runs)}: side by side; each reports when it has ended")
        try:
            return max(_report(name, run) for name, run in _as_they_end(runs))
        except KeyboardInterrupt:
            # It has reached each of them, too.
            for run in runs.values():
                run.process.wait()
            return INTERRUPTED


@contextmanager
def _started(command: Sequence[str | Path], report: Path) -> Iterator[Run]:
    # A process that may not keep what it compiles compiles all of this repository, and the tests start a thousand.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (
        report.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ) as process,
    ):
        try:
            yield Run(process, report)
        finally:
            process.terminate()


def _as_they_end(runs: Mapping[str, Run]) -> Iterator[tuple[str, Run]]:
    left, began, said = dict(runs), time.monotonic(), 0
    while left:
        for name in [name for name, run in left.items() if run.process.poll() is not None]:
            yield name, left.pop(name)
        minutes = int((time.monotonic() - began) / SAY_EVERY_S)
        if left and minutes > said:
            said = minutes
            _say(f"after {minutes} min: " + ", ".join(f"{name} {run.share}" for name, run in left.items()))
        time.sleep(LOOK_EVERY_S)


def _report(name: str, run: Run) -> int:
    _say(f"\n--- {name} ---\n{run.said}")
    return abs(run.process.wait())


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
