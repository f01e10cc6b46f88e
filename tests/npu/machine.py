"""A machine with emulated NPUs: `python tests/npu/machine.py COMMAND` runs a command on it; without COMMAND, a shell.

The devices are this machine's CPU; see emulated/torch_npu. `--device npu-emulated` starts the trainer through it.
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
MISSING_DRIVER = "libascend_hal.so: cannot open shared object file: No such file or directory"
HELLO = f"""\
{DEVICES} emulated NPUs (not real ones: their numbers and speed say nothing about an NPU). For example:
  python -m launcher submit --backend local --device npu --npus 2 --profile digits --data-path data/digits
"""


def environment(*, apex: bool = False) -> dict[str, str]:
    """Return the variables that show eight emulated NPUs to a process; the first use builds the emulation."""
    files = Path(_build_module().CACHE) / "dev"
    files.mkdir(parents=True, exist_ok=True)
    for number in range(DEVICES):
        (files / f"davinci{number}").touch()
    folders = [str(EMULATED), *([str(APEX)] if apex else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(folders), "PNAS_DEVICE_FILES": str(files)}


def unloadable_torch_npu(folder: Path, version: str = "2.9.0") -> dict[str, str]:
    """Return the variables that show a torch_npu whose driver is missing; its files are in the folder."""
    package, info = folder / "path/torch_npu", folder / f"path/torch_npu-{version}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(f"raise ImportError({MISSING_DRIVER!r})\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return {"PYTHONPATH": str(package.parent)}


def build() -> None:
    """Build the device, so that no run must wait for it.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    module = _build_module()
    if not module.place().exists():
        sys.stderr.write("building the emulated NPU: under a minute, once\n")
        module.library()


def _build_module() -> ModuleType:
    """Return the emulation's build module, without its package, which imports the library to be built."""
    spec = importlib.util.spec_from_file_location("build_npu", EMULATED / "torch_npu/_emulation/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(command: list[str]) -> NoReturn:
    """Become the command, or a shell for `--device npu` on emulated NPUs; exit with 2 without a compiler."""
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
