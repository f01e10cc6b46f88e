"""Install pinned packages into the environment of this Python: `python requirements/install.py requirements/X.txt`.

uv has the six gigabytes of torch installed in a third of pip's time, and refuses as pip does a package that is not the
one that was tested. Where an index is in pip's configuration alone, uv does not find it, and pip installs in its place.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
# Where uv is pinned; it is of no use to those who only run.
TOOLS = FOLDER / "test-2.14.1.txt"
# They are all that is needed: what torch requires beside them, as triton, is left out on purpose (lock.py).
PINNED = ("--quiet", "--no-deps", "--require-hashes", "--requirement")
PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *PINNED)
UV = (str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", sys.executable, "--compile-bytecode")


def install(requirements: str) -> int:
    """Install what the file pins; the exit code of who has tried last."""
    found = re.search(r"^uv==.*\n(?:    --hash=.*\n?)+", TOOLS.read_text(), re.MULTILINE)
    assert found is not None, f"{TOOLS} does not pin uv"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as uv:
        uv.write(found[0])
        uv.flush()
        code = _run(*PIP, uv.name) or _run(*UV, *PINNED, requirements)
    if code != 0:
        sys.stderr.write("uv could not install them (see above); pip tries\n")
        code = _run(*PIP, requirements)
    return code


def _run(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
