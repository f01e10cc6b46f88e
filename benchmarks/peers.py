"""The needs of benchmarks: a cluster, and peers at pinned versions, which the first use installs into the cache."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import NotMeasuredError
from tests.cluster.testbed.artifacts.binaries import MODULES, pinned_version
from tests.cluster.testbed.requirements import missing_requirement

TORCHX, STERN = "0.7.0", "v1.35.0"
KUBERNETES = pinned_version(MODULES / "kubernetes", "k8s.io/kubernetes")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnas" / "benchmarks"


def torchx() -> Path:
    """Return the program `torchx`, installed in a separate environment because it needs other versions than pnas.

    Raises:
        NotMeasuredError: it cannot be installed.
    """
    folder = CACHE / f"torchx-{TORCHX}"
    program = folder / "bin" / "torchx"
    if not program.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _install([*pip, f"torchx[kubernetes]=={TORCHX}"])
    return program


def stern() -> Path:
    """Return the program `stern`, built from its Go module, which pins its requirements; Go fetches the toolchain.

    Raises:
        NotMeasuredError: Go is not installed, or stern cannot be built.
    """
    folder = CACHE / f"stern-{STERN}"
    if not (folder / "stern").exists():
        environ = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
        _install(["go", "install", f"github.com/stern/stern@{STERN}"], environ)
    return folder / "stern"


def need_cluster() -> None:
    """Check that a cluster can be started here.

    Raises:
        NotMeasuredError: it cannot.
    """
    reason = missing_requirement()
    if reason is not None:
        raise NotMeasuredError(reason)


def _install(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, env=environ, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotMeasuredError(f"{command[0]} is not installed, which installs {command[-1]}") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        raise NotMeasuredError(f"{command[-1]} cannot be installed: {last}") from error
