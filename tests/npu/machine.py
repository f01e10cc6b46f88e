"""A machine with emulated NPUs: `python tests/npu/machine.py COMMAND` runs a command on it, without one a shell.

The devices are this machine's CPU; see emulated/torch_npu. `--device npu-emulated` starts the trainer by this program.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

EMULATED = Path(__file__).parent / "emulated"
APEX = Path(__file__).parent / "emulated_apex"
DEVICES = 8
HELLO = f"""\
{DEVICES} emulated NPUs (not real ones: their numbers and speed say nothing about an NPU). For example:
  python -m launcher submit --backend local --device npu --npus 2 --profile digits --data-path data/digits
"""


def environment(*, apex: bool = False) -> dict[str, str]:
    """Variables that show eight emulated NPUs to whatever is started with them; the first use builds them."""
    files = Path(_building().CACHE) / "dev"
    files.mkdir(parents=True, exist_ok=True)
    for number in range(DEVICES):
        (files / f"davinci{number}").touch()
    folders = [str(EMULATED), *([str(APEX)] if apex else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(folders), "PNAS_DEVICE_FILES": str(files)}


def build() -> None:
    """Build the device, so that no run has to wait for it.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    building = _building()
    if not building.place().exists():
        sys.stderr.write("building the emulated NPU: under a minute, once\n")
        building.library()


def _building() -> ModuleType:
    """The emulation's own module for it; within its package it would be imported with what it is to build."""
    spec = importlib.util.spec_from_file_location("build_npu", EMULATED / "torch_npu/_emulation/build.py")
    assert spec is not None
    assert spec.loader is not None
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    return building


def main(command: list[str]) -> NoReturn:
    """Become the command, or a shell for `--device npu` on emulated NPUs; without a compiler, end with 2."""
    try:
        build()
    except (RuntimeError, OSError, ImportError) as error:
        sys.stderr.write(f"error: no emulated NPUs: {error}\n")
        sys.exit(2)
    if not command:
        sys.stdout.write(HELLO)
        sys.stdout.flush()
        command = [os.environ.get("SHELL", "/bin/sh")]
    os.execvpe(command[0], command, {**os.environ, **environment()})


if __name__ == "__main__":
    main(sys.argv[1:])
