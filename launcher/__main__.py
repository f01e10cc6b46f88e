"""`python -m launcher`: see `launcher.cli`, and for help pages `launcher.pages`, which costs a tenth of it."""

import sys

from launcher.pages import page
from trainer.shared.program import exit_with, run


def _helped() -> bool:
    """Whether a help page was all that was asked for, and it could be printed."""
    try:
        text = page(sys.argv[1:])
        if text is None:
            return False
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        # The long way knows how to tell of a full disk, or of a reader that has gone.
        return False
    return True


if __name__ == "__main__":
    exit_with(lambda: 0 if _helped() else run("launcher.cli"))
