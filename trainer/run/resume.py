"""Which run is continued, and from which checkpoint: every meaning of `--resume`, and every way in which it is wrong.

Nothing is changed here. It imports no torch: the process that starts the workers decides, once for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, BadCheckpointError, CheckpointManifest
from trainer.checkpoint.reading import list_checkpoints, newest_valid, read_manifest, step_of, verify_when_readable
from trainer.data.index import Datasets
from trainer.records.lease import LOCK_FILE
from trainer.records.run_records import TRAINING_RESULT
from trainer.run.image_list import describe_changes
from trainer.shared.config import TrainConfig
from trainer.shared.errors import FolderTakenError, TrainerError, UsageError
from trainer.shared.runs import CHECKPOINTS_FOLDER, TRAINING, is_run_folder, run_folder_of
from trainer.shared.text import visible

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
_NEEDED = {"config", "num_classes", "data", "progress", "state", "arithmetic"}


@dataclass(frozen=True)
class Source:
    """The run to continue.

    Attributes:
        run: Its folder.
        checkpoint: The checkpoint that the user named; None stands for the newest valid one.
        in_place: The run continues in its own folder; else a new run begins from its state.
        may_begin: If no checkpoint has been saved, the run begins at its first step.
    """

    run: Path
    checkpoint: Path | None
    in_place: bool
    may_begin: bool


def find_source(config: TrainConfig, *, output_given: bool) -> Source | None:
    """Return what `--resume` and `--run-name` mean; None for a new run in its own folder.

    Args:
        config: The user's settings, over the defaults.
        output_given: Whether the user said which output folder.

    Raises:
        UsageError: Nothing there can be continued.
        FolderTakenError: The folder is a training run's, and `--mode` does not train.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        if config.run_name is None:
            raise UsageError("--resume auto needs --run-name: the run to begin, or to continue if it has been begun")
        run = (config.output / config.run_name).resolve()
        if not run.exists():
            return None
        if not run.is_dir() or _is_foreign(run):
            raise UsageError(f"--resume auto: {run} is not a run's folder: choose another --run-name")
        if config.mode not in TRAINING and list_checkpoints(run / CHECKPOINTS_FOLDER):
            raise FolderTakenError(f"{run}: holds a training run, with its records: choose another --run-name")
        return Source(run, None, in_place=True, may_begin=True)
    run, checkpoint = _locate(config.resume)
    return Source(run, checkpoint, in_place=_is_named(run, config, output_given=output_given), may_begin=False)


def choose_checkpoint(source: Source, on_note: Callable[[str], None]) -> CheckpointManifest | None:
    """Return the verified checkpoint to continue from; None if the run may begin at its first step without one.

    Args:
        on_note: Called with each checkpoint that was refused, and the reason.

    Raises:
        UsageError: The checkpoint that the user named cannot be used, or the run has no checkpoint.
        TrainerError: The run has checkpoints, and none can be used, or one cannot be read now.
    """
    if source.checkpoint is not None:
        try:
            return _readable(verify_when_readable(source.checkpoint))
        except BadCheckpointError as reason:
            raise UsageError(
                f"--resume {source.checkpoint}: {reason}; --resume {source.run} takes the newest valid checkpoint"
            ) from None
    folder = source.run / CHECKPOINTS_FOLDER
    if folder.is_symlink() and not folder.exists():
        raise TrainerError(
            f"{folder}: the target of this link does not exist: is a volume missing? Nothing was changed"
        )
    count = len(list_checkpoints(folder))
    if not count:
        if source.may_begin:
            return None
        raise UsageError(
            f"--resume {source.run}: no checkpoint was saved there; --resume auto with --run-name {source.run.name} "
            "begins this run again"
        )
    manifest = newest_valid(folder, on_refused=lambda path, reason: on_note(f"resume: {path} refused: {reason}"))
    if manifest is None:
        raise TrainerError(
            f"{folder}: none of {count} checkpoints can be used (reasons above); nothing was changed: begin another "
            "run under another --run-name, or repair the files"
        )
    return _readable(manifest)


def check_data(manifest: CheckpointManifest, datasets: Datasets, config: TrainConfig, *, run: Path) -> str | None:
    """Return the changes in the data since the checkpoint, if the user accepts them; None without changes.

    Raises:
        UsageError: The classes are others, or files came or went and `--accept-changed-data` was not given.
    """
    classes = int(manifest.content["num_classes"])
    if classes != len(datasets.classes):
        raise UsageError(
            f"--data-path {config.data_path}: {len(datasets.classes)} classes, but {manifest.path} was trained on "
            f"{classes}: give the data it was begun with, or finetune from its best.safetensors with --weights"
        )
    # Checkpoints of earlier versions do not name them.
    names = [visible(name) for name in datasets.classes]
    renamed = sorted({*names} ^ {*manifest.content["data"].get("classes", names)})
    if renamed:
        raise UsageError(
            f"--data-path {config.data_path}: other class folders than {manifest.path} was trained on (such as "
            f"{renamed[0]}): give them their old names, or finetune from its best.safetensors with --weights"
        )
    if manifest.content["data"].get("fingerprint") == datasets.fingerprint:
        return None
    changes = f"the images have changed since {manifest.path.name}: {describe_changes(run, datasets)}"
    if not config.accept_changed_data:
        raise UsageError(f"--data-path {config.data_path}: {changes}; put them back, or give --accept-changed-data")
    return changes


def describe_position(content: Mapping[str, Any]) -> str:
    """Return how far a checkpoint's run was, for the user."""
    progress, epochs = content["progress"], content["config"]["epochs"]
    if progress["epoch"] >= epochs:
        return "the end of its run"
    return f"epoch {progress['epoch']}, step {progress['step']}"


def result_of(run: Path, *, epochs: int, checkpoint: Path | None = None) -> Path | None:
    """Return the result file of a run that is complete; None for a run that must go on, or whose end is not certain.

    A run is complete if its checkpoint is the end of its last epoch, and its result was written after the checkpoint:
    an earlier result is of a run with fewer epochs.

    Args:
        checkpoint: The newest valid one, if the caller knows it; else the newest one is believed to be valid.
    """
    try:
        checkpoint = checkpoint or next(iter(list_checkpoints(run / CHECKPOINTS_FOLDER)), None)
        if checkpoint is None or read_manifest(checkpoint).content["progress"]["epoch"] < epochs:
            return None
        saved = (checkpoint / MANIFEST_FILE).stat().st_mtime_ns
        files = [(path, path.stat()) for path in run.glob(TRAINING_RESULT)]
    except (OSError, BadCheckpointError):
        return None
    return next((path for path, facts in files if facts.st_size and facts.st_mtime_ns >= saved), None)


def is_training_state(path: Path) -> bool:
    """Return whether `path` is a checkpoint, a run or a file of a checkpoint, as opposed to weights."""
    if path.is_dir():
        return _is_checkpoint(path) or is_run_folder(path) or path.name == CHECKPOINTS_FOLDER
    return path.name in (MANIFEST_FILE, STATE_FILE) and _is_checkpoint(path.parent)


def _locate(path: Path) -> tuple[Path, Path | None]:
    """Return the run that `--resume PATH` means, and the checkpoint if it names one."""
    if not path.exists():
        raise UsageError(f"--resume {path}: no such folder; give a run's folder or one of its checkpoints/step-...")
    if not path.is_dir():
        raise UsageError(f"--resume {path}: {_about_file(path)}")
    folder = path.resolve()
    if _is_checkpoint(folder):
        return run_folder_of(folder) or folder.parent, folder
    if folder.name == CHECKPOINTS_FOLDER or is_run_folder(folder):
        return (folder.parent if folder.name == CHECKPOINTS_FOLDER else folder), None
    runs = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and is_run_folder(entry))
    if len(runs) > 1:
        shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        raise UsageError(f"--resume {path}: holds {len(runs)} runs ({shown}): name one of them")
    if not runs:
        empty = not any(folder.iterdir())
        raise UsageError(
            f"--resume {path}: {'empty' if empty else 'neither a run nor a checkpoint of this program'}; "
            "give a run's folder or one of its checkpoints/step-..."
        )
    return folder / runs[0], None


def _about_file(path: Path) -> str:
    if is_training_state(path):
        return f"is one file of a checkpoint: give its folder, {path.parent}"
    if path.suffix in WEIGHT_SUFFIXES:
        return f"is a weight file, which holds no training state: use --weights {path}"
    return "is a file; give a run's folder or one of its checkpoints/step-..."


def _is_named(run: Path, config: TrainConfig, *, output_given: bool) -> bool:
    """Return whether the names that the user gave, if any, are the run's own."""
    if config.run_name is not None and config.run_name != run.name:
        return False
    if not is_run_folder(run):
        raise UsageError(
            f"--resume {config.resume}: is in no run's folder: name a new run to begin from it with --run-name"
        )
    if output_given and config.output.resolve() != run.parent.resolve():
        if config.run_name is None:
            raise UsageError(
                f"--output {config.output}: the run goes on in {run}; leave --output out, or begin another run from "
                "its state with --run-name"
            )
        return False
    return True


def _is_checkpoint(folder: Path) -> bool:
    return step_of(folder) is not None or (folder / MANIFEST_FILE).is_file()


def _is_foreign(folder: Path) -> bool:
    """Return whether it holds anything else than a run's first moments leave there."""
    names = [entry.name for entry in folder.iterdir()]
    return not is_run_folder(folder) and any(not (name.isdigit() or LOCK_FILE in name) for name in names)


def _readable(manifest: CheckpointManifest) -> CheckpointManifest:
    missing = _NEEDED - manifest.content.keys()
    if missing:
        raise UsageError(f"{manifest.path}: not a training state: it lacks {', '.join(sorted(missing))}")
    return manifest
