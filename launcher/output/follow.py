"""Showing a job's log: every block is checked by its line numbers, searched for progress, filtered, and shown.

One loop for every backend and every display. How the job ended is never read off the lines: the backend says it.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from launcher.errors import NotFoundError
from launcher.jobs import Ended, Explanation, JobRef, Jobs, JobState, LogBlock, LogItem, LogLoss, Notice, Phase
from launcher.kube.retry import poll
from launcher.output.display import Display, Format, open_display
from launcher.output.explanation import explanation_text
from launcher.output.files import LogFiles
from launcher.output.lines import EVERYTHING, Demultiplexer, LogGap, LogLine, Selection
from launcher.output.progress import JobProgress
from launcher.output.same_lines import SameLines

_SHOWN_DEVICES = 16


@dataclass(frozen=True)
class LogView:
    """How to show a log.

    Attributes:
        timestamps: begin each line with its time.
        tail: begin with this number of the lines that already exist.
        since_s: begin with the lines of this last time.
        save: folder that gets one file per device, with all lines, whatever is shown.
        where: the options that lead to the job again, for commands that are shown.
        all_ranks: show a line of each rank, too, if several ranks say the same.
    """

    form: Format = "text"
    timestamps: bool = False
    selection: Selection = EVERYTHING
    tail: int | None = None
    since_s: float | None = None
    save: Path | None = None
    where: str = ""
    all_ranks: bool = False

    @property
    def shows_same_once(self) -> bool:
        """Whether lines that several ranks say alike are shown once."""
        return self.form == "text" and not self.all_ranks and not self.selection.of_a_device


@dataclass
class LogFollow:
    """One reading of a log: the line counts, the job's progress and outcome, and what is lost without a number."""

    view: LogView = LogView()
    files: LogFiles | None = None
    demultiplexer: Demultiplexer = field(init=False)
    progress: JobProgress = field(default_factory=JobProgress)
    same_lines: SameLines = field(default_factory=SameLines)
    losses: list[LogLoss] = field(default_factory=list)
    outcome: JobState | None = None
    expected_devices: int | None = None
    """The number of devices of the job; None if unknown."""

    def __post_init__(self) -> None:
        self.demultiplexer = Demultiplexer(from_start=self.view.since_s is None)

    def run(self, items: Iterable[LogItem], display: Display) -> None:
        """Show `items` until they end.

        Raises:
            NotFoundError: the job has no device of the selected rank or name.
        """
        tail: deque[LogLine | LogGap] | None = None
        if self.view.tail is not None:
            tail = deque(maxlen=self.view.tail)
        for item in items:
            if not isinstance(item, LogBlock):
                self._tell(item, display)
            elif tail is None:
                display.show(self._pieces(item))
            else:
                tail.extend(self._pieces(item))
                if not item.data:  # All lines that already exist have been read.
                    display.show(list(tail))
                    tail = None
            # A pod's successor may have other devices for the same ranks.
            if self.expected_devices == len({writer.rank for writer in self.demultiplexer.devices}):
                self.expected_devices = None
                if absent := self.absent_selection():
                    raise NotFoundError(absent)
        if tail:
            display.show(list(tail))

    def _tell(self, item: LogLoss | Notice | Explanation | Ended, display: Display) -> None:
        """Show what is not part of the log."""
        if isinstance(item, Ended):
            self.outcome = item.state
            for loss in self._unproven_end(item.state):
                self._tell(loss, display)
        elif isinstance(item, LogLoss):
            self.losses.append(item)
            display.show([item])
        elif isinstance(item, Notice):
            display.note(item.text)
        else:
            for line in explanation_text(item, now=time.time(), where=self.view.where).split("\n"):
                display.note(line)

    def _unproven_end(self, state: JobState) -> Iterator[LogLoss]:
        """Yield a loss if a trainer has succeeded, and the lines do not say how many there are."""
        # A job without a backend in its spec is not the trainer's, and only the trainer promises a last line.
        if state.phase is Phase.SUCCEEDED and state.spec.get("backend") and self.view.since_s is None:
            missing = int(state.setting("nodes") or 1) - len(self.demultiplexer.ended_nodes)
            if missing > 0:
                yield LogLoss("its last lines are not there", source=f"job {state.ref.name}")

    def absent_selection(self) -> str:
        """Return that none of the devices that delivered a line is selected, and which there are; empty otherwise."""
        devices, selection = self.demultiplexer.devices, self.view.selection
        if not devices or self.view.since_s is not None or selection.selects_any(devices):
            return ""
        names = [writer.source for writer in devices]
        more = f" and {len(names) - _SHOWN_DEVICES} more" if len(names) > _SHOWN_DEVICES else ""
        return f"{selection}: the job has {', '.join(names[:_SHOWN_DEVICES])}{more}"

    def _pieces(self, block: LogBlock) -> list[LogLine | LogGap]:
        """Return the lines to show, after all lines were counted, searched for progress and saved."""
        timestamps = block.timestamps() if self.view.timestamps and block.timestamps is not None else ()
        pieces = self.demultiplexer.feed(block.data, block.stream, timestamps)
        self.progress.update_all([piece for piece in pieces if isinstance(piece, LogLine)])
        if self.files is not None:
            self.files.write(pieces, block.stream)
        if not self.view.selection.everything:
            pieces = [piece for piece in pieces if isinstance(piece, LogGap) or self.view.selection.matches(piece)]
        return self.same_lines.without_same(pieces) if self.view.shows_same_once else pieces


def show_log(jobs: Jobs, ref: JobRef, view: LogView, *, follow: bool = False, attempt: int | None = None) -> LogFollow:
    """Show a job's lines on standard output, with `follow` until the job has ended.

    Raises:
        NotFoundError: there is no such job, attempt, rank or device.
    """
    with nullcontext() if view.save is None else LogFiles(view.save) as files:
        reading = LogFollow(view, files)
        is_complete = not follow
        if follow and view.selection.of_a_device:
            state = poll(lambda: jobs.get(ref), every_s=jobs.poll_s)
            is_complete = state.phase.ended
            npus, nodes = state.setting("npus"), state.setting("nodes") or 1
            reading.expected_devices = None if npus is None else int(npus) * int(nodes)
        live = follow and not view.timestamps and view.selection.everything
        display = open_display(view.form, reading.progress, live=live, timestamps=view.timestamps)
        log = partial(jobs.logs, ref, follow=follow, since_s=view.since_s, attempt=attempt)
        try:
            reading.run(poll(log, every_s=jobs.poll_s, note=display.note) if follow else log(), display)
        finally:
            display.close()
    if is_complete and (absent := reading.absent_selection()):
        raise NotFoundError(absent)
    return reading
