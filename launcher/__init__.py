"""Submit training jobs, follow their per-device logs, and say why one waits or failed."""

import sys
from pathlib import Path

PROGRAM = "pnas" if Path(sys.argv[0]).name == "pnas" else "python -m launcher"
"""The command line of the launcher, as the user began it: an installed script, or a module."""
