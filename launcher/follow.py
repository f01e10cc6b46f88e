"""Following a job: every block of its log is proven, taken note of, filtered, and shown.

One loop for every backend and every view. The job's outcome is never read off the stream: it is the backend's to say.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from launcher.backends import Backend, JobRef, JobState
from launcher.display import Format, View, open_view
from launcher.errors import ExitCode, JobFailed, JobStopped
from launcher.logs import Demultiplexer, Gap, Line, Selection
from launcher.progress import Progress


@dataclass
class Following:
    """What was seen so far: the books of the lines, and the job's latest news."""

    demultiplexer: Demultiplexer = field(default_factory=Demultiplexer)
    progress: Progress = field(default_factory=Progress)

    def run(
        self, blocks: Iterable[bytes], view: View, *, selection: Selection | None = None, tail: int | None = None
    ) -> None:
        """Show `blocks` until they end; with `tail`, begin with the last so many of the lines that exist already."""
        selection = selection or Selection()
        kept: deque[Line | Gap] | None = None if tail is None else deque(maxlen=tail)
        for block in blocks:
            items = list(self._items(block))
            if not selection.everything:
                items = [item for item in items if isinstance(item, Gap) or selection.wants(item)]
            if kept is None:
                view.show(items)
                continue
            kept.extend(items)
            if not block:  # all that existed has been read
                view.show(list(kept))
                kept = None
        if kept:
            view.show(list(kept))

    def _items(self, block: bytes) -> Iterable[Line | Gap]:
        for item in self.demultiplexer.feed(block):
            if isinstance(item, Line):
                self.progress.update(item)
            yield item


def show(
    backend: Backend,
    ref: JobRef,
    *,
    form: Format = "text",
    selection: Selection | None = None,
    tail: int | None = None,
    since_s: float | None = None,
    follow: bool = False,
    attempt: int | None = None,
) -> Following:
    """Show a job's lines on standard output, with `follow` until it has ended; return what was seen."""
    seen = Following(Demultiplexer(from_start=since_s is None))
    live = follow and (selection is None or selection.everything)
    view = open_view(form, progress=seen.progress, live=live)
    try:
        seen.run(
            backend.logs(ref, follow=follow, since_s=since_s, attempt=attempt), view, selection=selection, tail=tail
        )
    finally:
        view.close()
    return seen


def raise_outcome(state: JobState) -> None:
    """Raise what an ended job's phase means for the exit code, with the first cause as its message.

    Raises:
        JobFailed: it failed, or was lost.
        JobStopped: it was cancelled or preempted.
    """
    code = state.phase.exit_code
    if code is not ExitCode.OK:
        outcome = JobStopped if code is ExitCode.CANCELLED else JobFailed
        raise outcome(f"job {state.ref.name} {state.phase.value.lower()}: {state.reason}")
