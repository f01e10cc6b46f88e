"""The peers of the benchmarks, at pinned versions; the first use installs them into the user's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TORCHX, STERN = "0.7.0", "v1.35.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnas" / "benchmarks"


def torchx() -> Path:
    """Return the program `torchx`, installed in a separate environment because it needs other versions than pnas.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    folder = CACHE / f"torchx-{TORCHX}"
    program = folder / "bin" / "torchx"
    if not program.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torchx[kubernetes]=={TORCHX}"], check=True)
    return program


def stern() -> Path:
    """Return the program `stern`, built from its Go module, which pins its requirements; Go fetches the toolchain.

    Raises:
        FileNotFoundError: Go is not installed.
        subprocess.CalledProcessError: it cannot be built.
    """
    folder = CACHE / f"stern-{STERN}"
    if not (folder / "stern").exists():
        environ = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
        subprocess.run(["go", "install", f"github.com/stern/stern@{STERN}"], check=True, env=environ)
    return folder / "stern"
