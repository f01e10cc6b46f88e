"""`--device npu-emulated`: NPUs that a checkout's tests make of this machine's CPU. An installation has none."""

from pathlib import Path
from typing import Final

import trainer
from trainer.shared.config.layers import ConfigError

EMULATED: Final = "npu-emulated"
_MACHINE = Path(trainer.__file__).resolve().parents[1] / "tests" / "npu" / "machine.py"


def emulated_machine() -> Path:
    """The program that runs a command where there are emulated NPUs.

    Raises:
        ConfigError: there is no checkout around this package.
    """
    if not _MACHINE.is_file():
        raise ConfigError(
            f"--device {EMULATED}: the emulated NPU is a part of the tests, and there is no {_MACHINE}: run it from a "
            "checkout of the source, or use --device cpu"
        )
    return _MACHINE
