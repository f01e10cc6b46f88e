"""A job in a terminal: its line and one per device change in place, above which all other lines scroll.

The only module that imports rich, and itself imported only for a terminal.
"""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from launcher.jobs import LogLoss
from launcher.output.lines import LogGap, LogLine
from launcher.output.progress import JobProgress, live_lines
from trainer.shared.text import visible, visible_bytes


def live_display(progress: JobProgress) -> "LiveDisplay | None":
    """Return a display on standard output; None if the terminal cannot move its cursor, or has no columns for rich."""
    console = Console(highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal or console.width < 1 else LiveDisplay(console, progress)


class LiveDisplay:
    """A line of the job and one per device change in place; all other lines scroll above."""

    def __init__(self, console: Console, progress: JobProgress) -> None:
        self._console = console
        self._progress = progress
        self._last_texts: dict[int, str] = {}
        self._live = Live(self, console=console, refresh_per_second=4, vertical_overflow="ellipsis")

    def show(self, pieces: Sequence[LogLine | LogGap | LogLoss]) -> None:
        """Scroll the lines; a line about steps or progress only changes the lines below."""
        if not self._live.is_started:  # Not sooner: a caller of this method also closes, whatever happens in between.
            self._live.start(refresh=True)
        scrolled: list[str] = []
        for piece in pieces:
            if not isinstance(piece, LogLine):
                scrolled.append(visible(f"--- {piece} ---"))
                continue
            rank = piece.writer.rank
            if not (piece.number is not None and piece.text.startswith((b"step ", b"progress "))):
                scrolled.append(visible_bytes(piece.shown))
                if rank is not None:
                    self._last_texts[rank] = visible_bytes(piece.text)
        if scrolled:
            self._console.print(Text("\n".join(scrolled)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Scroll it above the devices."""
        self._console.print(Text(visible(text), style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Draw the last state once more and leave it on the screen."""
        self._live.stop()

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the current lines of the job and its devices; rich calls this whenever it draws."""
        progress, texts = self._progress, self._last_texts
        lines = live_lines(progress, progress.devices, texts, options.max_width, ascii_only=options.ascii_only)
        yield Text("\n".join(lines), no_wrap=True, overflow="crop")
