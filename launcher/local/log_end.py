"""The end of a local job's log, read once: its last lines, the outcome that they tell, and where missing lines are.

The console is a file in the state folder, whose disk can fill up. The trainer then goes on: each device's file in the
run's folder has the same numbered lines.
"""

import math
import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from launcher.local import records
from launcher.local.console import read_tail
from launcher.output.lines import LogLine, parse_lines
from launcher.output.progress import JobProgress

# The supervisor's last line, after all lines of its workers.
_ENDED = re.compile(rb'ended lines="[\d: ]*" outcome=([a-z]+)')
# Seconds from the last line until the runner has recorded the end.
_RECORD_S = 5.0


def device_logs(output: Path | None, *, started: float | None, ended: float | None) -> list[Path]:
    """Return the files, one per device, that one attempt wrote in the run's folder.

    Args:
        started, ended: seconds since 1970; the attempt last wrote to its files between them. None if unknown.
    """
    if output is None or started is None:
        return []
    latest = math.inf if ended is None else ended + _RECORD_S
    written: list[tuple[float, Path]] = []
    with suppress(OSError):  # another user's folder, or one on a file server that does not answer
        files = [(path.stat().st_mtime, path) for path in output.glob("*/console-*.log") if os.access(path, os.R_OK)]
        written = sorted((time, path) for time, path in files if started <= time <= latest)
    # A later attempt's files are newer.
    first = {path.parent: path for _, path in reversed(written)}
    return sorted(first.values())


class LogEnd:
    """The last lines of an attempt's log. They are read when they are first needed, and only then.

    Attributes:
        folder: the attempt's records.
        output: the run's folder.
        started, ended: when the attempt's trainer was started and ended, in seconds since 1970; None if unknown.
    """

    def __init__(
        self, folder: Path, *, output: Path | None = None, started: float | None = None, ended: float | None = None
    ) -> None:
        self.folder = folder
        self.output = output
        self.started = started
        self.ended = ended

    @cached_property
    def device_logs(self) -> list[Path]:
        """The files that have what the console lacks."""
        return device_logs(self.output, started=self.started, ended=self.ended)

    @cached_property
    def _console(self) -> list[LogLine]:
        return parse_lines(read_tail(self.folder / records.CONSOLE))

    @cached_property
    def lines(self) -> list[LogLine]:
        """The last lines of the console, and of the devices' files if the console lacks its end."""
        device_logs = [] if self.in_console else self.device_logs
        return self._console + [line for path in device_logs for line in parse_lines(read_tail(path))]

    @property
    def in_console(self) -> bool:
        """Whether the console has the supervisor's last line, and so all lines."""
        return any(_outcome_of(line) for line in self._console)

    @cached_property
    def progress(self) -> JobProgress:
        """The job's progress."""
        return JobProgress().update_all(self.lines)

    @property
    def outcome(self) -> str | None:
        """The outcome by the supervisor's last line: succeeded, resumable or failed. None without such a line."""
        return next((outcome for line in reversed(self.lines) if (outcome := _outcome_of(line))), None)

    @property
    def last_words(self) -> str:
        """The last line if it has no tag: the best cause for a program that ended without a reason.

        A worker's line of progress is no cause.
        """
        line = next((line for line in reversed(self.lines) if line.raw.strip()), None)
        return "" if line is None or line.number is not None else line.raw.decode("utf-8", "replace").strip()

    @property
    def written(self) -> float | None:
        """The time of the last sign of life, in seconds since 1970; None without one."""
        files = (self.folder / name for name in (records.CONSOLE, records.PROCESSES))
        return max((path.stat().st_mtime for path in (*files, *self.device_logs) if path.exists()), default=None)


def _outcome_of(line: LogLine) -> str | None:
    match = None if line.writer.node is None else _ENDED.fullmatch(line.text)
    return None if match is None else match[1].decode()
