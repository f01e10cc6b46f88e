"""Following a job: every block of its log is proven, taken note of, filtered, and shown.

One loop for every backend and every view; it decides nothing about the job's outcome, which is the backend's to say.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from launcher.display import View
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
            items = [item for item in self._items(block) if isinstance(item, Gap) or selection.wants(item)]
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
