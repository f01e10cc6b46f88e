"""Install pinned packages into the environment of this Python: `python requirements/install.py requirements/X.txt`.

uv installs the six gigabytes of torch in a third of pip's time. Like pip, it refuses a package whose hash is not the
tested one. uv does not read pip's configuration: if an index is configured only there, uv fails and pip installs.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
# This file pins uv. The files for running do not, because only an installation needs uv.
TOOLS = FOLDER / "test-2.14.1.txt"
# The file is complete. lock.py leaves some requirements of torch out on purpose, such as triton.
PINNED = ("--quiet", "--no-deps", "--require-hashes", "--requirement")
PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *PINNED)
UV = (str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", sys.executable, "--compile-bytecode")


def install(requirements: str) -> int:
    """Install the pinned packages with uv, then with pip if uv fails, and return the exit code of the last attempt."""
    uv_pin = re.search(r"^uv==.*\n(?:    --hash=.*\n?)+", TOOLS.read_text(), re.MULTILINE)
    assert uv_pin is not None, f"{TOOLS} does not pin uv"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as uv:
        uv.write(uv_pin[0])
        uv.flush()
        code = _run(*PIP, uv.name) or _run(*UV, *PINNED, requirements)
    if code != 0:
        sys.stderr.write("uv could not install the packages (see above); trying pip\n")
        code = _run(*PIP, requirements)
    return code


def _run(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
