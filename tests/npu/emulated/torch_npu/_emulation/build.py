"""Builds the emulation's C++ part once for each torch and each version of its sources, into the user's cache."""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import runpy
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).parent / "src"
# Not in XDG_CACHE_HOME: tests give each run another one, and each would build the library again.
CACHE = Path(os.environ.get("NPU_EMULATED_CACHE", Path.home() / ".cache/pnas/npu-emulated"))
NAME = "npu_emulation_c"
CXX20_SINCE = (2, 12)
# Sources compiled at the same time; more of them would need gigabytes.
JOBS = 2


def load() -> ModuleType:
    """Return the extension; build it if it is missing."""
    spec = importlib.util.spec_from_file_location(NAME, library())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library() -> Path:
    """Return the path of the library; the first call builds it (under a minute on two free cores), others wait for it.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    built = place()
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with _locked(CACHE / "lock"):
            if not built.exists():
                with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as scratch:
                    _compile(Path(scratch))
                    built.parent.mkdir(exist_ok=True)
                    (Path(scratch) / built.name).rename(built)
    return built


def place() -> Path:
    """Return the present or future path of the library of this torch and these sources, without importing torch."""
    return CACHE / f"{_torch_version()}-{_key()}" / f"{NAME}.so"


def _torch_version() -> str:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"])


def _key() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update((sysconfig.get_config_var("SOABI") or "").encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(scratch: Path) -> None:
    from torch.utils.cpp_extension import (
        include_paths,
        library_paths,
    )  # it imports setuptools, which only a build needs

    major, minor = map(int, _torch_version().split(".")[:2])
    flags = [
        *("-O1", "-fPIC", "-w", "-std=c++20" if (major, minor) >= CXX20_SINCE else "-std=c++17"),
        *("-DUSE_DISTRIBUTED", "-DUSE_C10D_GLOO", f"-DTORCH_EXTENSION_NAME={NAME}", "-D_GLIBCXX_USE_CXX11_ABI=1"),
        *(word for path in (*include_paths(), sysconfig.get_paths()["include"]) for word in ("-isystem", path)),
    ]
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [scratch / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(JOBS) as pool:
        commands = [[*flags, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)]
        list(pool.map(_run, commands))
    linked = [*(f"-L{path}" for path in library_paths()), "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
    _run(["-shared", *map(str, objects), *linked, "-o", str(scratch / f"{NAME}.so")])


def _run(arguments: list[str]) -> None:
    compiler = os.environ.get("CXX", "c++")
    try:
        subprocess.run([compiler, *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"the emulated npu needs a C++ compiler: no {compiler}; install g++, or set CXX") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the emulated npu cannot be built:\n{error.stderr[-4000:]}") from error
