"""The facts about runs that both programs know; the reading commands need them without the options' library."""

from pathlib import Path

TRAINING = ("full", "finetune")
"""The modes that save checkpoints and can be resumed."""

CHECKPOINT_FORMAT = "pnas-checkpoint"
"""How a checkpoint's two files name their format, so that the state is not taken for weights."""

WEIGHT_SETTINGS = ("model", "padding", "image_size", "normalize", "eval_crop", "interpolation")
"""The settings that come with the weights, unless the user sets them."""

CHECKPOINTS_FOLDER = "checkpoints"
"""The folder of a run's checkpoints, in the run's own."""

PACK_INDEX = "pack-index.npz"
"""The file by which a folder is known for packed images."""


def is_run_folder(folder: Path) -> bool:
    """Return whether a run has begun in this folder."""
    return (folder / "config.yaml").is_file() or (folder / CHECKPOINTS_FOLDER).is_dir()


def run_folder_of(path: Path) -> Path | None:
    """Return the run's folder that `path` is, or whose checkpoints it is in; None if it is neither."""
    if is_run_folder(path):
        return path
    checkpoints = next((part for part in (path, *path.parents) if part.name == CHECKPOINTS_FOLDER), None)
    return None if checkpoints is None else checkpoints.parent
