"""The needs of benchmarks: a cluster, and peers at pinned versions, which the first use installs into the cache.

`python -m benchmarks.peers BENCHMARK...` installs and builds all that these benchmarks need, so that they need not.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.report import NotMeasuredError
from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.requirements import missing_requirement
from tests.npu import machine

TORCHX, STERN = "0.7.0", "v1.35.0"
KUBERNETES = binaries.pinned_version(binaries.MODULES / "kubernetes", "k8s.io/kubernetes")
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
    """Check that a cluster can be started here, and build its programs.

    Raises:
        NotMeasuredError: it cannot.
    """
    reason = missing_requirement()
    if reason is not None:
        raise NotMeasuredError(reason)
    try:
        binaries.kubernetes()
        binaries.coredns()
    except binaries.BuildError as error:
        raise NotMeasuredError(str(error)) from error


def need_emulated_npus() -> None:
    """Build the emulated NPU.

    Raises:
        NotMeasuredError: there is no compiler, or it fails.
    """
    try:
        machine.build()
    except RuntimeError as error:
        raise NotMeasuredError(str(error)) from error


NEEDS: Mapping[str, Sequence[Callable[[], object]]] = {
    "npu_host_work": (need_emulated_npus,),
    "launcher_start": (torchx,),
    "submit": (need_cluster,),
    "follow": (need_cluster, stern),
    "large_cluster": (need_cluster,),
}
"""The needs of each benchmark that can take minutes the first time, and no time later."""


def prepare(benchmarks: Sequence[str]) -> None:
    """Install and build what the benchmarks need; a benchmark whose needs cannot be met says so itself."""
    print("installing and building missing programs, which takes minutes the first time", file=sys.stderr)
    for need in dict.fromkeys(need for name in benchmarks for need in NEEDS.get(name, ())):
        with suppress(NotMeasuredError):
            need()


def _install(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, env=environ, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotMeasuredError(f"{command[0]} is not installed, which installs {command[-1]}") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        raise NotMeasuredError(f"{command[-1]} cannot be installed: {last}") from error


if __name__ == "__main__":
    prepare(sys.argv[1:])
