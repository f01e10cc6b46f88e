"""A plugin of pytest that writes its progress to a file, and what `python -m tests` reads from that file.

The file has one line for each event: `total 120`, `done` for each finished test, `failed tests/unit/test_x.py::test_y`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Progress:
    """How far one run of pytest is; `total` is None while pytest still collects, and for a run without tests."""

    total: int | None = None
    done: int = 0
    failed: tuple[str, ...] = ()

    @property
    def share(self) -> str:
        """Return the number of finished tests and of all tests, such as `12/80`."""
        return "running" if self.total is None else f"{self.done}/{self.total}"


def read_progress(file: Path) -> Progress:
    """Return the progress that a run has written to the file; the file appears after the collection of tests."""
    lines = file.read_text().splitlines() if file.exists() else []
    totals = [int(line.removeprefix("total ")) for line in lines if line.startswith("total ")]
    failed = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    return Progress(totals[-1] if totals else None, lines.count("done"), tuple(dict.fromkeys(failed)))


def estimate_s(elapsed_s: float, runs: Sequence[Progress]) -> float | None:
    """Return the seconds until the last run ends, if its tests take as long as before; None if it has no test yet."""
    tested = [run for run in runs if run.total]
    if any(not run.done for run in tested) or not tested:
        return None
    return max(elapsed_s * ((run.total or 0) - run.done) / run.done for run in tested)


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
        self._write(f"total {len(session.items)}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(f"failed {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write(f"failed {report.nodeid}")

    def pytest_runtest_logfinish(self) -> None:
        self._write("done")

    def _write(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{line}\n")
