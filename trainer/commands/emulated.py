"""Start a command again on the emulated NPUs of a checkout (`--device npu-emulated`)."""

import os
import sys
from typing import NoReturn

from trainer.shared.config import EMULATED, emulated_machine
from trainer.shared.errors import UsageError


def start_on_emulated_npus() -> NoReturn:
    """Replace this process by the same command with the emulated NPUs on its PYTHONPATH."""
    if sys.flags.ignore_environment:
        raise UsageError(f"--device {EMULATED}: Python must read PYTHONPATH: start it without -I and -E")
    os.execv(sys.executable, (sys.executable, str(emulated_machine()), sys.executable, *sys.orig_argv[1:]))
