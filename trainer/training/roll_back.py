"""A run goes back to a checkpoint from before its training failed, or from when its ranks last agreed.

Newer checkpoints are set aside, so that no later attempt continues from the failure.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import BAD, GOOD, BadCheckpointError, CheckpointManifest
from trainer.checkpoint.reading import newest_valid, step_of
from trainer.checkpoint.writing import CheckpointWriter, set_newer_aside
from trainer.distributed.process_group import all_gather_object
from trainer.records.run_records import say
from trainer.training.checkpoints import AGREED_RANKS
from trainer.training.progress import TrainingProgress
from trainer.training.resume import resume
from trainer.training.steps import PEERS, Training

Rule = Callable[[CheckpointManifest], None]
"""Raises a BadCheckpointError for a checkpoint that a roll-back must not go to."""


def leave_newest(training: Training, folder: Path, rules: Sequence[Rule], *, writer: CheckpointWriter) -> Path | None:
    """Return, on all ranks, the newest valid checkpoint in the run's `folder` that the first possible rule accepts.

    Rank 0 sets newer ones aside. Return None if no rule accepts one.

    Raises:
        TrainerError: the folder belongs to another process by now.
    """
    chosen = None
    if training.rank == 0:
        for number, rule in enumerate(rules):
            chosen = newest_valid(folder, on_refused=_ignore if number else _warn, accept=rule)
            if chosen is not None:
                writer.prove()  # reading the checkpoints can take minutes
                _set_aside(folder, chosen.path, attempt=writer.attempt)
                break
    with training.watchdog.waiting(PEERS):
        return all_gather_object(None if chosen is None else chosen.path, training.group)[0]


def roll_back(training: Training, checkpoint: Path, data: Mapping[str, Any]) -> TrainingProgress:
    """Restore a checkpoint of this run, from `leave_newest`."""
    training.comparison.discard()
    progress = resume(training, checkpoint, data)
    progress.bad_steps = 0
    return progress


def before_bad_step(step: int) -> list[Rule]:
    """Return the rules for a run whose steps from `step` on were left out, the best one first.

    The state before the first bad step may be broken already, with figures that are still finite.
    """

    def healthy(manifest: CheckpointManifest) -> None:
        if manifest.health != GOOD:
            raise BadCheckpointError(f"it was saved when the training was {manifest.health}")
        earlier(manifest)

    def earlier(manifest: CheckpointManifest) -> None:
        complete(manifest)
        if (step_of(manifest.path) or 0) >= step:
            raise BadCheckpointError("the next step from it was left out")

    def complete(manifest: CheckpointManifest) -> None:
        if manifest.health == BAD:
            raise BadCheckpointError("it was saved while steps were left out")

    return [healthy, earlier, complete]


def refuse_without_agreement(manifest: CheckpointManifest) -> None:
    """Raise a BadCheckpointError for a checkpoint whose ranks were not compared."""
    if not manifest.content.get(AGREED_RANKS):
        raise BadCheckpointError("its ranks did not compare their states")


def _set_aside(folder: Path, chosen: Path, *, attempt: int) -> None:
    try:
        for path in set_newer_aside(folder, chosen, attempt=attempt):
            say("warning", text=f"{path} is newer than {chosen.name}: moved to set-aside-{attempt}/")
    except OSError as error:
        say("warning", text=f"{folder}: {error}; move the checkpoints after {chosen.name} away yourself")


def _warn(path: Path, reason: str) -> None:
    say("warning", text=f"{path} refused: {reason}")


def _ignore(_path: Path, _reason: str) -> None:
    """The first rule has said it already."""
