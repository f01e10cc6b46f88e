"""A plugin of pytest that writes its progress to a file, and what `python -m tests` reads from that file.

The file has one line for each event: `total 120 456.5` (tests and their usual seconds), `done 3.5` for each finished
test, `failed tests/unit/test_x.py::test_y`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# Seconds that a test usually takes on two cores, by the beginning of its path. Only the estimate uses them.
USUAL_S = {
    "tests/cluster/": 3.5,
    "tests/local/test_kill_points.py": 25.0,
    "tests/local/test_resume.py": 25.0,
    "tests/local/": 2.0,
    "tests/networks/": 8.0,
    "tests/npu/": 4.0,
    "tests/unit/training/": 0.2,
    "": 0.06,
}
_LEAST_SHARE = 0.03


@dataclass(frozen=True)
class Progress:
    """How far one run of pytest is.

    Attributes:
        total: the number of its tests; None while pytest still collects, and for a run without tests.
        done: how many of them have finished.
        usual_s: what all of them usually take.
        done_s: what the finished ones usually take.
        failed: the names of the failed tests.
    """

    total: int | None = None
    done: int = 0
    usual_s: float = 0.0
    done_s: float = 0.0
    failed: tuple[str, ...] = ()

    @property
    def share(self) -> str:
        """Return the number of finished tests and of all tests, such as `12/80`."""
        return "running" if self.total is None else f"{self.done}/{self.total}"


def read_progress(file: Path) -> Progress:
    """Return the progress that a run has written to the file; the file appears after the collection of tests."""
    lines = file.read_text().splitlines() if file.exists() else []
    totals = [line.split()[1:] for line in lines if line.startswith("total ")]
    done = [float(line.removeprefix("done ")) for line in lines if line.startswith("done ")]
    failed = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    total, usual_s = (int(totals[-1][0]), float(totals[-1][1])) if totals else (None, 0.0)
    return Progress(total, len(done), usual_s, sum(done), tuple(dict.fromkeys(failed)))


def estimate_s(elapsed_s: float, runs: Sequence[Progress]) -> float | None:
    """Return the seconds until all runs end, by the usual seconds of their tests; None while too few have finished."""
    usual_s, done_s = sum(run.usual_s for run in runs), sum(run.done_s for run in runs)
    if done_s <= _LEAST_SHARE * usual_s:
        return None
    return elapsed_s * (usual_s - done_s) / done_s


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--progress-file", type=Path, help="write the number of finished and of failed tests to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Write progress, if a file was named."""
    file: Path | None = config.getoption("--progress-file")
    if file is not None:
        config.pluginmanager.register(_Writer(file))


class _Writer:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(f"total {len(session.items)} {sum(map(_usual_s, (item.nodeid for item in session.items)))}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(f"failed {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write(f"failed {report.nodeid}")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(f"done {_usual_s(nodeid)}")

    def _write(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{line}\n")


def _usual_s(test: str) -> float:
    return next(seconds for path, seconds in USUAL_S.items() if test.startswith(path))
