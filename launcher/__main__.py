"""`python -m launcher`: see `launcher.cli`, and for help pages `launcher.pages`, which costs a tenth of it."""

import sys

from launcher.pages import page
from trainer.errors import UsageError
from trainer.program import exit_with, missing_package


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


def _main() -> int:
    try:
        from launcher.cli import main  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {missing_package(error)}\n")
        return UsageError.exit_code
    return main(sys.argv[1:])


if __name__ == "__main__":
    try:
        exit_with(0 if _helped() else _main())
    except KeyboardInterrupt:
        exit_with(130)
