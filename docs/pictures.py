"""Pictures of the live view and of the report, drawn from the records of a real run in `docs/screenshots/digits`.

Both are SVG, written by the launcher's own code: no browser takes part, so that every machine writes the same bytes.
The picture of the report is the page itself, which the browser of the reader lays out.
"""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console

from launcher.commands.report import subject_of_folder
from launcher.jobs import LogBlock
from launcher.output.follow import LogFollow
from launcher.output.live import LiveDisplay
from launcher.results.page import report_page
from trainer.shared.attempts import time_of

FOLDER = Path(__file__).parent / "screenshots"
RUN = FOLDER / "digits"
"""The records of `make run`, whose second process was killed by SIGSEGV. Paths and the host's name are replaced."""
_MOMENT = "progress done=78"
"""The line of the log after which the live view is drawn."""
_COLUMNS, _ROWS = 120, 15
_CHARACTER, _LINE, _MARGIN = 7.2, 17, 14
_SVG = 'xmlns="http://www.w3.org/2000/svg"'
_PAGE_WIDTH, _PAGE_HEIGHT = 1000, 2120


def files() -> dict[Path, str]:
    """Return the text of each picture."""
    return {FOLDER / "live.svg": _screen(_live_view()), FOLDER / "report.svg": _page()}


def _live_view() -> Sequence[str]:
    """Return the rows of a terminal that has followed the run for a while."""
    log = (RUN / "console.log").read_bytes()
    end = log.index(b"\n", log.index(_MOMENT.encode())) + 1
    written = io.StringIO()
    # It is no terminal, so that the display writes each line once, and its own lines at the end.
    console = Console(file=written, width=_COLUMNS, color_system=None, force_terminal=False, _environ={})
    reading = LogFollow()
    display = LiveDisplay(console, reading.progress)
    reading.run([LogBlock(log[:end])], display)
    display.close()
    # As a terminal wraps them.
    lines = written.getvalue().splitlines()
    return [line[start : start + _COLUMNS] for line in lines for start in range(0, len(line), _COLUMNS)][-_ROWS:]


def _screen(rows: Sequence[str]) -> str:
    width, height = round(_COLUMNS * _CHARACTER) + 2 * _MARGIN, len(rows) * _LINE + 2 * _MARGIN
    parts = [
        "<style>text { font: 12px ui-monospace, monospace; white-space: pre; fill: #e4e8ec; }</style>",
        '<rect width="100%" height="100%" rx="8" fill="#14171b"/>',
    ]
    for row, text in enumerate(rows, start=1):
        place = f'x="{_MARGIN}" y="{_MARGIN + _LINE * row - 4}" textLength="{len(text) * _CHARACTER:.1f}"'
        parts.append(f"<text {place}>{escape(text)}</text>")
    return _svg(width, height, parts)


def _page() -> str:
    """Return the report's page as a picture of its beginning."""
    subject = subject_of_folder(RUN)
    ended = time_of(subject.run.attempts[-1]["ended"])
    assert ended is not None
    page = report_page([subject], now=ended).replace(str(RUN), "output/digits")
    style = page[page.index("<style>") : page.index("</head>")]
    # The tables below are long.
    body = page[page.index("<body>") : page.index("<section><h2>Settings")] + "</body>"
    body = body.replace("<body>", '<body xmlns="http://www.w3.org/1999/xhtml">').replace("<svg ", f"<svg {_SVG} ")
    return _svg(
        _PAGE_WIDTH, _PAGE_HEIGHT, [style, '<foreignObject width="100%" height="100%">', body, "</foreignObject>"]
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    # The page has a style for its own charts.
    size = f'width="{width}" height="{height}" style="width: {width}px; height: {height}px"'
    return "\n".join([f'<svg {_SVG} {size} viewBox="0 0 {width} {height}">', *parts, "</svg>", ""])
