"""Run the checks and every test side by side (`make test`), or the unit tests in two processes (`make unit`).

Each part's report is shown when the part ends. Until then a line each minute counts the finished tests and estimates
the time left. Failing tests are listed at the end. Options for all tests come by PYTEST_ADDOPTS.

The tests on a cluster mostly wait for pods to start and to end, and take longest: they start first, and the other parts
run at a lower priority.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.progress import Progress, estimate_s, read_progress

CLUSTER = Path("tests/cluster")
SECOND_CLUSTER = [
    str(CLUSTER / f"test_{name}.py")
    for name in (
        *("volcano_stand_in", "volcano_jobs", "ranktable_writer", "recorded_ranktables", "log_rotation", "rights"),
        *("doctor", "chart", "trainer_image", "quickstart", "playground", "explain", "lost_node"),
    )
]
LOCAL = Path("tests/local")
KILLED = [str(LOCAL / f"test_{name}.py") for name in ("kill_points", "resume")]
UNIT = Path("tests/unit")
TRAINING = UNIT / "training"
PYTEST = (sys.executable, "-m", "pytest", "-p", "tests.progress")
SLOW = (*PYTEST, "--durations=15")
LATER = ("nice", "-n", "5", *SLOW)
EVERYTHING: dict[str, Sequence[str | Path]] = {
    "checks": ("make", "--no-print-directory", "check"),
    "one cluster": (*SLOW, CLUSTER, *(f"--ignore={path}" for path in SECOND_CLUSTER)),
    "another cluster": (*SLOW, *SECOND_CLUSTER),
    "killed runs": (*LATER, *KILLED),
    "whole runs": (*LATER, LOCAL, *(f"--ignore={path}" for path in KILLED)),
    "the rest": (*LATER, "tests", f"--ignore={CLUSTER}", f"--ignore={LOCAL}"),
}
UNIT_TESTS: dict[str, Sequence[str | Path]] = {
    "unit tests of the training": (*PYTEST, "-q", TRAINING),
    "other unit tests": (*PYTEST, "-q", UNIT, f"--ignore={TRAINING}"),
}
POLL_S = 0.5
REPORT_EVERY_S = 60
INTERRUPTED = 130


class Part:
    """A running part of the tests: its process, its report and its progress."""

    def __init__(self, process: "subprocess.Popen[bytes]", report: Path, progress: Path) -> None:
        self.process = process
        self._report = report
        self._progress = progress

    @property
    def report(self) -> str:
        """All that the part has printed so far."""
        return self._report.read_text(errors="replace")

    @property
    def progress(self) -> Progress:
        """The number of finished tests, and the failed ones."""
        return read_progress(self._progress)


def main(words: Sequence[str]) -> int:
    """Run the parts, and return the highest exit code: 0 if all tests have passed."""
    if words not in ([], ["unit"]):
        sys.stderr.write("usage: python -m tests [unit]\n")
        return 2
    commands = UNIT_TESTS if words else EVERYTHING
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        parts = {name: stack.enter_context(_start(command, Path(folder) / name)) for name, command in commands.items()}
        _say(f"{', '.join(parts)}: running side by side; each reports when it ends")
        try:
            codes = {name: _report(name, part) for name, part in _finished(parts)}
        except KeyboardInterrupt:
            # The terminal has sent the signal to every part as well.
            for part in parts.values():
                part.process.wait()
            return INTERRUPTED
        _say(_summary(codes, {name: part.progress for name, part in parts.items()}))
    return max(codes.values())


@contextmanager
def _start(command: Sequence[str | Path], report: Path) -> Iterator[Part]:
    progress = report.with_suffix(".progress")
    if "pytest" in command:
        command = (*command, f"--progress-file={progress}")
    # The tests start a thousand Python processes: with PYTHONDONTWRITEBYTECODE each would compile all modules again.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (
        report.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ) as process,
    ):
        try:
            yield Part(process, report, progress)
        finally:
            process.terminate()


def _finished(parts: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    """Yield each part when it ends, and report the progress of all each minute."""
    running, start, reported = dict(parts), time.monotonic(), 0
    while running:
        for name in [name for name, part in running.items() if part.process.poll() is not None]:
            yield name, running.pop(name)
        elapsed_s = time.monotonic() - start
        if running and int(elapsed_s / REPORT_EVERY_S) > reported:
            reported = int(elapsed_s / REPORT_EVERY_S)
            _say(progress_line(elapsed_s, {name: part.progress for name, part in parts.items()}, list(running)))
        time.sleep(POLL_S)


def progress_line(elapsed_s: float, progress: Mapping[str, Progress], running: Sequence[str]) -> str:
    """Say how many tests have finished, how long the rest may take, and where each running part is."""
    total = sum(item.total or 0 for item in progress.values())
    failed = sum(len(item.failed) for item in progress.values())
    left_s = estimate_s(elapsed_s, [*progress.values()])
    estimate = "the time left is not known yet" if left_s is None else f"about {max(1, round(left_s / 60))} min left"
    states = ", ".join(f"{name} {progress[name].share}" for name in running)
    done = f"{sum(item.done for item in progress.values()):,} of {total:,} tests"
    return f"{elapsed_s / 60:.0f} min: {done}, {f'{failed} failed, ' if failed else ''}{estimate} ({states})"


def _report(name: str, part: Part) -> int:
    _say(f"\n--- {name} ---\n{part.report}")
    return abs(part.process.wait())


def _summary(codes: Mapping[str, int], progress: Mapping[str, Progress]) -> str:
    done = sum(item.done for item in progress.values())
    failed = [test for item in progress.values() for test in item.failed]
    failed += [f"{name}: exit code {code}" for name, code in codes.items() if code and not progress[name].failed]
    if not failed:
        return f"{done:,} tests passed"
    return "\n".join([f"{done:,} tests, failed:", *(f"  {item}" for item in failed)])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
