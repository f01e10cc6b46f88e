"""Quick checks, without torch, before a job starts on this machine.

The trainer checks the same and more. These checks answer a mistyped path at once, and leave neither a job record nor
an output folder.
"""

import os
from pathlib import Path

from launcher.errors import ConflictError, RequestError
from launcher.settings.spec import JobSpec
from trainer.shared.config import EMULATED, emulated_machine


def check_paths(spec: JobSpec) -> None:
    """Check the paths of a job, and that this machine has its devices.

    Raises:
        ConfigError: the job wants emulated NPUs, which this installation lacks.
        RequestError: data, weights, rank table or output cannot be used.
        ConflictError: the output folder holds an earlier run.
    """
    train = spec.train
    if train.device == EMULATED:
        emulated_machine()
    if train.nodes > 1:
        raise RequestError(f"--nodes {train.nodes}: the local backend has this machine only; leave --nodes out")
    needed = ("val/",) if train.mode == "eval" else ("train/", "val/")
    # With auto a run can be new; only the trainer reads the settings of a checkpoint.
    resumes = train.resume is not None and (train.resume != "auto" or spec.output.exists())
    if not resumes or "data_path" in spec.given:
        _check_data(train.data_path, needed)
    for option, path in (("--weights", None if resumes else train.weights), ("--rank-table", train.rank_table)):
        if path is not None and not path.is_file():
            raise RequestError(f"{option} {path}: no such file; check the path")
    _check_output(train.output)
    if spec.output.exists() and not resumes:
        raise ConflictError(
            f"{spec.output} holds an earlier run, and a run is never overwritten: choose another --name or --output, "
            "or continue it with --resume auto"
        )


def _check_data(path: Path, needed: tuple[str, ...]) -> None:
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise RequestError(f"--data-path {path}: {what}; give the folder that holds {' and '.join(needed)}")
    missing = [name for name in needed if not (path / name).is_dir()]
    if missing:
        raise RequestError(
            f"--data-path {path}: there is no {' and no '.join(missing)} in it; "
            f"each class needs a folder there (see `python -m trainer data --help`)"
        )


def _check_output(path: Path) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise RequestError(f"--output {path}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"--output {path}: {existing} is not writable; choose another folder")
