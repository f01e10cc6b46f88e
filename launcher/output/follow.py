"""Following a job: every block of its log is proven, taken note of, filtered, and shown.

One loop for every backend and every view. The job's outcome is never read off the stream: it is the backend's to say.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import ExitCode, JobFailedError, JobStoppedError
from launcher.jobs import Block, Ended, JobRef, Jobs, JobState, LogItem, Loss, Notice
from launcher.output.display import Format, View, open_view
from launcher.output.lines import EVERYTHING, Demultiplexer, Gap, Line, Selection
from launcher.output.progress import Progress
from launcher.output.saving import Files


@dataclass
class Following:
    """What was seen so far: the books of the lines, the job's latest news, and what is lost without a number."""

    demultiplexer: Demultiplexer = field(default_factory=Demultiplexer)
    progress: Progress = field(default_factory=Progress)
    timestamps: bool = False
    files: Files | None = None
    losses: list[Loss] = field(default_factory=list)
    outcome: JobState | None = None

    def run(
        self,
        blocks: Iterable[LogItem],
        view: View,
        *,
        selection: Selection = EVERYTHING,
        tail: int | None = None,
    ) -> None:
        """Show `blocks` until they end; with `tail`, begin with the last so many of the lines that exist already."""
        kept: deque[Line | Gap] | None = None if tail is None else deque(maxlen=tail)
        for block in blocks:
            if isinstance(block, Ended):
                self.outcome = block.state
                continue
            if isinstance(block, Loss):
                self.losses.append(block)
                view.lose(block.text)
                continue
            if isinstance(block, Notice):
                view.note(block.text)
                continue
            items = self._items(block)
            if self.files is not None:
                self.files.write(items)
            if not selection.everything:
                items = [item for item in items if isinstance(item, Gap) or selection.wants(item)]
            if kept is None:
                view.show(items)
                continue
            kept.extend(items)
            if not block.data:  # all that existed has been read
                view.show(list(kept))
                kept = None
        if kept:
            view.show(list(kept))

    def _items(self, block: Block) -> list[Line | Gap]:
        stamps = block.stamps() if self.timestamps and block.stamps is not None else ()
        items = self.demultiplexer.feed(block.data, block.stream, stamps)
        self.progress.update_all([item for item in items if isinstance(item, Line)])
        return items


@dataclass(frozen=True)
class Reading:
    """How a log is to be shown.

    Attributes:
        timestamps: begin each line with its time.
        tail: begin with the last so many of the lines that exist already.
        since_s: begin with the lines of the last so many seconds.
        save: folder that gets one file per device, of all lines, whatever is shown.
    """

    form: Format = "text"
    timestamps: bool = False
    selection: Selection = EVERYTHING
    tail: int | None = None
    since_s: float | None = None
    save: Path | None = None


def show(jobs: Jobs, ref: JobRef, reading: Reading, *, follow: bool = False, attempt: int | None = None) -> Following:
    """Show a job's lines on standard output, with `follow` until it has ended; return what was seen."""
    with nullcontext() if reading.save is None else Files(reading.save) as files:
        return _show(jobs, ref, reading, files, follow=follow, attempt=attempt)


def _show(
    jobs: Jobs, ref: JobRef, reading: Reading, files: Files | None, *, follow: bool, attempt: int | None
) -> Following:
    seen = Following(Demultiplexer(from_start=reading.since_s is None), timestamps=reading.timestamps, files=files)
    live = follow and not reading.timestamps and reading.selection.everything
    view = open_view(reading.form, progress=seen.progress, live=live, timestamps=reading.timestamps)
    blocks = jobs.logs(ref, follow=follow, since_s=reading.since_s, attempt=attempt)
    try:
        seen.run(blocks, view, selection=reading.selection, tail=reading.tail)
    finally:
        view.close()
    return seen


def raise_outcome(state: JobState) -> None:
    """Raise what an ended job's phase means for the exit code, with the first cause as its message.

    Raises:
        JobFailedError: it failed, or was lost.
        JobStoppedError: it was cancelled or preempted.
    """
    code = state.phase.exit_code
    if code is not ExitCode.OK:
        outcome = JobStoppedError if code is ExitCode.CANCELLED else JobFailedError
        raise outcome(f"job {state.ref.name} {state.phase.value.lower()}: {state.reason}")
