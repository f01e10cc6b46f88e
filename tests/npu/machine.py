"""A machine with emulated NPUs: the environment in which programs find them, and a shell in it for a person.

`python -m tests.npu.machine` starts the shell. The devices are this machine's CPU; see emulated/torch_npu.
"""

import os
import subprocess
import sys
from pathlib import Path

EMULATED = Path(__file__).parent / "emulated"
APEX = Path(__file__).parent / "emulated_apex"
CACHE = Path.home() / ".cache/pnas/npu-emulated"
DEVICES = 8


def environment(*, apex: bool = False) -> dict[str, str]:
    """Variables that show eight emulated NPUs to whatever is started with them; the first use builds them."""
    files = CACHE / "dev"
    files.mkdir(parents=True, exist_ok=True)
    for number in range(DEVICES):
        (files / f"davinci{number}").touch()
    folders = [str(EMULATED), *([str(APEX)] if apex else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(folders), "PNAS_DEVICE_FILES": str(files)}


def build() -> None:
    """Build the device, so that no run has to wait for it."""
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env={**os.environ, **environment()})


def main() -> int:
    """A shell in which `--device npu` trains on emulated NPUs."""
    build()
    sys.stdout.write(
        f"{DEVICES} emulated NPUs (not real ones: their numbers and speed say nothing about an NPU). For example:\n"
        "  python -m launcher submit --backend local --device npu --npus 2 --profile digits --data-path data/digits\n"
    )
    sys.stdout.flush()
    return subprocess.run(
        [os.environ.get("SHELL", "/bin/sh")], check=False, env={**os.environ, **environment()}
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
