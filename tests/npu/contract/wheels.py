"""The real wheels of torch_npu: pinned in wheels.txt, cached by their hash, never installed or imported."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.testbed.artifacts.binaries import locked

PINS = Path(__file__).with_name("wheels.txt")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnas" / "wheels"
# One build is enough: the Python sources and the schemas are the same in all builds of a version.
BUILD = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")


class DownloadError(Exception):
    """A wheel cannot be downloaded; the message is one line."""


def pins() -> dict[str, str]:
    """Return the SHA-256 of each pinned requirement, such as `torch_npu==2.9.0`."""
    lines = re.findall(r"^(\S+==\S+) --hash=sha256:([0-9a-f]{64})$", PINS.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(lines)


def wheel(requirement: str) -> Path:
    """Return the file of a pinned requirement, downloaded if the cache does not have it.

    Raises:
        DownloadError: the package index cannot be reached, or returned another file than the pinned one.
    """
    digest = pins()[requirement]
    folder = CACHE / digest
    with locked(CACHE / "lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as partial:
                _download(requirement, Path(partial))
                (downloaded,) = Path(partial).iterdir()
                actual = hashlib.sha256(downloaded.read_bytes()).hexdigest()
                if actual != digest:
                    raise DownloadError(f"{downloaded.name} has SHA-256 {actual}, but {PINS.name} pins {digest}")
                shutil.copytree(partial, folder)
    (path,) = folder.iterdir()
    return path


def _download(requirement: str, folder: Path) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", *BUILD)
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DownloadError(f"the real {requirement} cannot be downloaded, which this check reads: {last}")
