"""`make test`: every test, in pytests side by side, each with a cluster of its own or none; their reports one by one.

What is tested on a cluster waits most of its time, for pods to start and to end; all else computes meanwhile. Options
for all of them come by PYTEST_ADDOPTS.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

CLUSTER = Path("tests/cluster")
SECOND_CLUSTER = [
    str(CLUSTER / f"test_{name}.py")
    for name in ("volcano", "launcher_volcano", "ranktable_writer", "rights", "the_chart", "the_image", "playground")
]
GROUPS: dict[str, Sequence[str]] = {
    "one cluster": (str(CLUSTER), *(f"--ignore={path}" for path in SECOND_CLUSTER)),
    "another cluster": SECOND_CLUSTER,
    "no cluster": ("tests", f"--ignore={CLUSTER}"),
}
LOOK_EVERY_S = 0.5
INTERRUPTED = 130


def main() -> int:
    """Run them; the highest exit code, which is 0 if all have passed."""
    with ExitStack() as stack:
        running = {name: stack.enter_context(_started(words)) for name, words in GROUPS.items()}
        _say(f"tests on {', on '.join(running)} run side by side; each reports when it has ended")
        try:
            return max(_report(name, process, report) for name, (process, report) in _as_they_end(running))
        except KeyboardInterrupt:
            # It has reached each of them, too.
            for process, _ in running.values():
                process.wait()
            return INTERRUPTED


Running = tuple["subprocess.Popen[bytes]", IO[bytes]]


@contextmanager
def _started(words: Sequence[str]) -> Iterator[Running]:
    command = [sys.executable, "-m", "pytest", "--durations=15", *words]
    with (
        tempfile.TemporaryFile() as report,
        subprocess.Popen(command, stdout=report, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process, report
        finally:
            process.terminate()


def _as_they_end(running: dict[str, Running]) -> Iterator[tuple[str, Running]]:
    left = dict(running)
    while left:
        for name in [name for name, (process, _) in left.items() if process.poll() is not None]:
            yield name, left.pop(name)
        time.sleep(LOOK_EVERY_S)


def _report(name: str, process: "subprocess.Popen[bytes]", report: IO[bytes]) -> int:
    report.seek(0)
    _say(f"\n--- {name} ---\n{report.read().decode(errors='replace')}")
    return abs(process.returncode)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
