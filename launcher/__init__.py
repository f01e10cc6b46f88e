"""Submit training jobs, follow their per-device logs, and say why one waits or failed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.notebook import Launcher

__all__ = ["PROGRAM", "Launcher"]

PROGRAM = "pnas" if Path(sys.argv[0]).name == "pnas" else "python -m launcher"
"""The command line of the launcher, as the user began it: an installed script, or a module."""


def __getattr__(name: str) -> Any:
    """Import `Launcher` when a program asks for it: the command line starts without it."""
    if name != "Launcher":
        raise AttributeError(f"module `launcher` has no `{name}`")
    from launcher.notebook import Launcher  # noqa: PLC0415  # the command line starts without it

    return Launcher
