"""Quick checks, without torch, before a job starts on this machine: `submit` raises the first, `doctor` lists all.

The trainer checks the same and more. These checks answer a mistyped path at once, and leave neither a job record nor
an output folder.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from launcher.errors import ConflictError, LauncherError, RequestError
from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.settings.spec import JobSpec
from trainer.shared.config import EMULATED, TrainConfig, emulated_machine
from trainer.shared.container import memory_bytes, usable_processors
from trainer.shared.errors import UsageError
from trainer.shared.files import why_no_file, why_no_folder
from trainer.shared.program import TRAINER
from trainer.shared.runs import PACK_INDEX

_GIB = 1 << 30


def check_paths(spec: JobSpec) -> None:
    """Check the paths of a job, and that this machine has its devices.

    Raises:
        ConfigError: the job wants emulated NPUs, which this installation lacks.
        RequestError: data, weights, rank table or output cannot be used.
        ConflictError: the output folder holds an earlier run.
    """
    for _, check in _checks(spec):
        check()


def examine_machine(spec: JobSpec, root: Path = Path("/")) -> Iterator[PreflightFinding]:
    """Yield what this machine has for the job, what it lacks, and what only the trainer can tell.

    Args:
        root: the root of the file system, which has the devices.
    """
    shared = shutil.disk_usage(root / "dev/shm").total if (root / "dev/shm").is_dir() else 0
    sizes = f"{memory_bytes() / _GIB:.1f} GiB of memory, {shared / _GIB:.1f} GiB of /dev/shm"
    yield PreflightFinding("machine", "ok", f"{socket.gethostname()}: {usable_processors()} processors, {sizes}")
    yield from map(_package, ("torch", "torchvision"))
    yield from (_finding(about, check, spec) for about, check in _checks(spec))
    yield _devices(spec.train, len(list((root / "dev").glob("davinci[0-9]*"))))
    if spec.train.mode != "prove" and path_exists(spec.train.data_path) and not _resumes(spec):
        text = f"{NOT_CHECKED}whether each image can be read: `{TRAINER} data verify {spec.train.data_path}`"
        yield PreflightFinding("images", "unknown", text)


def _package(name: str) -> PreflightFinding:
    """Check that a package is installed, without importing it."""
    try:
        return PreflightFinding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        text = f"Python has no {name}, which the trainer needs: install pnas with its requirements"
        return PreflightFinding(name, "missing", text)


def _finding(about: str, check: Callable[[], None], spec: JobSpec) -> PreflightFinding:
    try:
        check()
    except (LauncherError, UsageError) as error:
        return PreflightFinding(about, "missing", str(error))
    return PreflightFinding(about, "ok", _facts(about, spec))


def _checks(spec: JobSpec) -> list[tuple[str, Callable[[], None]]]:
    """Return the checks of a job's paths, each with the thing that it is about."""
    train = spec.train
    needed = ("val/",) if train.mode == "eval" else ("train/", "val/")
    checks: list[tuple[str, Callable[[], None]]] = [("nodes", lambda: _check_nodes(train))]
    if train.mode != "prove" and (not _resumes(spec) or "data_path" in spec.given):
        checks.append(("data", lambda: _check_data(train.data_path, needed)))
    if train.weights is not None and not _resumes(spec):
        checks.append(("weights", lambda: _check_file("--weights", train.weights)))
    if train.rank_table is not None:
        checks.append(("rank table", lambda: _check_file("--rank-table", train.rank_table)))
    return [*checks, ("output", lambda: _check_output(spec))]


def _resumes(spec: JobSpec) -> bool:
    """Return whether the run goes on: with auto it can be new; only the trainer reads a checkpoint's settings."""
    return spec.train.resume is not None and (spec.train.resume != "auto" or path_exists(spec.output))


def _facts(about: str, spec: JobSpec) -> str:
    """Return what is known of a thing that the job can use."""
    train = spec.train
    if about == "data" and (train.data_path / PACK_INDEX).is_file():
        return f"{train.data_path}: packed images"
    if about == "data":
        folders = (path for path in (train.data_path / "train", train.data_path / "val") if path.is_dir())
        counts = (f"{path.name}/ with {sum(entry.is_dir() for entry in path.iterdir())} classes" for path in folders)
        return f"{train.data_path}: {', '.join(counts)}"
    if about == "output":
        free = shutil.disk_usage(_existing(train.output)).free
        return f"{train.output}: writable, {free / _GIB:.1f} GiB free"
    return {"weights": str(train.weights), "rank table": str(train.rank_table)}.get(about, "this machine only")


def _devices(train: TrainConfig, npus: int) -> PreflightFinding:
    """Check the devices by the files of the NPUs' driver; only torch knows other devices."""
    if train.device in ("cpu", EMULATED):
        return PreflightFinding("devices", "ok", f"the job asks for {train.device}")
    if npus == 0 and train.device == "npu":
        text = "--device npu: this machine has no NPU (/dev/davinci*): use --device cpu, or a cluster"
        return PreflightFinding("devices", "missing", text)
    if npus == 0:
        text = f"{NOT_CHECKED}whether torch finds a GPU; without one the CPU trains, as there is no NPU (/dev/davinci*)"
        return PreflightFinding("devices", "unknown", text)
    if (train.npus or 0) > npus:
        text = f"--npus {train.npus}: this machine has {npus} (/dev/davinci*); ask for {npus} or fewer"
        return PreflightFinding("devices", "missing", text)
    text = f"{NOT_CHECKED}whether the {npus} NPUs of this machine are healthy: `{TRAINER} env`"
    return PreflightFinding("devices", "unknown", text)


def _check_nodes(train: TrainConfig) -> None:
    if train.device == EMULATED:
        emulated_machine()
    if train.nodes > 1:
        raise RequestError(f"--nodes {train.nodes}: the local backend has this machine only; leave --nodes out")


@contextmanager
def _reading(option: str, path: Path) -> Iterator[None]:
    """Translate the system's refusal to look at a path: a folder without rights, or a name that is too long.

    Raises:
        RequestError: the system refuses.
    """
    try:
        yield
    except OSError as error:
        place = "" if error.filename in (None, str(path)) else f"{error.filename}: "
        raise RequestError(f"{option} {path}: {place}{error.strerror}; choose another path") from error


def path_exists(path: Path) -> bool:
    """Return whether the path exists; a path that cannot be looked at does not, and its own check says why."""
    with suppress(OSError):
        return path.exists()
    return False


def _check_file(option: str, path: Path | None) -> None:
    if path is None:
        return
    with _reading(option, path):
        fault = "" if path.is_file() else why_no_file(path)
    if fault:
        raise RequestError(f"{option} {path}: {fault}; check the path")


def _check_data(path: Path, needed: tuple[str, ...]) -> None:
    with _reading("--data-path", path):
        _check_data_folders(path, needed)


def _check_data_folders(path: Path, needed: tuple[str, ...]) -> None:
    if not path.is_dir():
        raise RequestError(
            f"--data-path {path}: {why_no_folder(path)}; give the folder that holds {' and '.join(needed)}"
        )
    if (path / PACK_INDEX).is_file():
        return
    missing = [name for name in needed if not (path / name).is_dir()]
    if missing:
        raise RequestError(
            f"--data-path {path}: there is no {' and no '.join(missing)} in it; "
            f"each class needs a folder there (see `{TRAINER} data --help`)"
        )
    for name in needed:
        next((path / name).iterdir(), None)  # the user can read it


def _check_output(spec: JobSpec) -> None:
    path = spec.train.output
    with _reading("--output", path):
        existing, taken = _existing(path), spec.output.exists()
    if not existing.is_dir():
        raise RequestError(f"--output {path}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"--output {path}: {existing} is not writable; choose another folder")
    if taken and not _resumes(spec):
        raise ConflictError(
            f"{spec.output} holds an earlier run, and a run is never overwritten: choose another --name or --output, "
            "or continue it with --resume auto"
        )


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
