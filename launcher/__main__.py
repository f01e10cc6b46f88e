"""`python -m launcher` and `pnas`: see `launcher.cli`; `launcher.first_page` is for a user who types no command."""

import runpy
import sys
from pathlib import Path

from launcher.errors import report_faults

# By its path: `import trainer` would find a user's file `trainer.py` first.
_START = runpy.run_path(str(Path(__file__).parents[1] / "trainer" / "shared" / "start.py"))


def main() -> None:
    """Run the launcher's command line, or show the first page."""
    report_faults()
    asks_for_help = sys.argv[1:2] in ([], ["-h"], ["--help"])
    _START["run_pinned"]("launcher.first_page" if asks_for_help else "launcher.cli")


if __name__ == "__main__":
    _START["forget_working_folder"]()
    main()
