"""The start of a run, or its next attempt: from what the user set to a folder that is locked, checked and named.

All that can be refused is refused before anything is changed, and all that several processes could spoil for each
other happens under the run's lock.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.files import CHECKPOINTS, Manifest, clear
from trainer.data.index import Datasets
from trainer.run.folder import claim, create_run_folder, next_attempt
from trainer.run.image_list import INDEX_FILE, keep_index
from trainer.run.lock import locked
from trainer.run.resume import Source, check_data, choose, find_source, set_aside, where
from trainer.shared.config import Layer, TrainConfig, settings
from trainer.shared.config.layers import ConfigError, flag_name
from trainer.shared.config.train import OF_ONE_ATTEMPT, TRAINING, checkpoint_layer
from trainer.shared.files import writing
from trainer.topology import Topology

# A run that was begun with one of these others is another run.
IDENTITY = ("model", "padding", "aux", "seed")
# The images are compared by their names, and the weights have been read long ago.
FOUND_ELSEWHERE = frozenset({"data_path", "weights"})

Check = Callable[[TrainConfig], Datasets]
"""Refuses inputs that cannot be used; returns the data."""


@dataclass(frozen=True)
class Attempt:
    """What the workers are started with."""

    config: TrainConfig
    run: Path
    number: int
    checkpoint: Path | None


@dataclass(frozen=True)
class Starter:
    """The process that starts workers: its place in the job, and whom it talks to.

    Attributes:
        on_note: told lines for the user.
        on_lost: told, from another thread, that the run's folder has been taken: end.
    """

    topology: Topology
    command: Sequence[str]
    on_note: Callable[[str], None]
    on_lost: Callable[[str], None]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the workers that it starts."""
        return tuple(worker.rank for worker in self.topology.workers)

    @property
    def leads(self) -> bool:
        """It starts rank 0, so it alone writes what the run has once."""
        return 0 in self.ranks

    @property
    def alone(self) -> bool:
        """It starts every rank."""
        return len(self.ranks) == self.topology.world_size

    @contextlib.contextmanager
    def owning(self, run: Path) -> Iterator[None]:
        """Hold the run's lock, if this process leads."""
        with contextlib.ExitStack() as stack:
            if self.leads:
                lock = locked(run, command=self.command, on_note=self.on_note, on_lost=self.on_lost)
                stack.enter_context(lock)
            yield


@contextlib.contextmanager
def begin(layers: Sequence[Layer], starter: Starter, check: Check) -> Iterator[Attempt]:
    """Begin or continue the run that `layers`, the user's settings, name; its lock is held until the context ends.

    Raises:
        UsageError: what the user set cannot be used; nothing was changed.
        FolderTakenError: the folder belongs to another run, or another process works in it.
        TrainerError: no checkpoint can be used, or the folder cannot be written.
    """
    given, origins = settings(layers, partial=True)
    source = find_source(given, output_given=origins["output"] != "default")
    with contextlib.ExitStack() as stack:
        if source is not None and source.in_place:
            stack.enter_context(starter.owning(source.run))
            yield _continue(layers, source, starter, check)
            return
        manifest = choose(source, starter.on_note) if source is not None else None
        config, datasets = _checked(layers, manifest, source, starter, check)
        run = create_run_folder(config, leads=starter.leads, alone=starter.alone, now=time.time())
        stack.enter_context(starter.owning(run))
        _keep_index(run, datasets, config, starter, changed=False)
        yield _attempt(config, run, 1, manifest, starter)


def _continue(layers: Sequence[Layer], source: Source, starter: Starter, check: Check) -> Attempt:
    """The next attempt in the folder of a run that has been begun."""
    run = source.run
    here = Layer("--resume", {"output": str(run.parent), "run_name": run.name})
    trains = settings(layers, partial=True)[0].mode in TRAINING
    manifest = choose(source, starter.on_note) if trains else None
    config, datasets = _checked([here, *layers], manifest, source, starter, check)
    number = next_attempt(run, starter.ranks, leads=starter.leads)
    if manifest is None and number > 1:
        why = "no checkpoint was saved" if trains else f"--mode {config.mode} resumes nothing"
        starter.on_note(f"resume: {run}: {why}: attempt {number} begins at the first step")
    changed = manifest is not None and manifest.content["data"].get("fingerprint") != datasets.fingerprint
    if starter.leads:
        with writing(run):
            claim(run, config, attempt=number)
            clear(run / CHECKPOINTS)
            moved = set_aside(run, manifest.path, attempt=number) if manifest is not None else []
        for path in moved:
            starter.on_note(f"resume: {path} is newer: moved to set-aside-{number}/")
    _keep_index(run, datasets, config, starter, changed=changed)
    return _attempt(config, run, number, manifest, starter)


def _checked(
    layers: Sequence[Layer], manifest: Manifest | None, source: Source | None, starter: Starter, check: Check
) -> tuple[TrainConfig, Datasets]:
    """The settings and the data, after everything that can be wrong with them and with the checkpoint."""
    if manifest is None:
        config, _ = settings(layers)
        return config, check(config)
    origin = f"checkpoint {manifest.path.name}"
    begun = checkpoint_layer(origin, manifest.content["config"])
    config, origins = settings([*layers, begun])
    for line in compare(config, settings([begun], partial=True)[0], origins, origin=origin):
        starter.on_note(line)
    datasets = check(config.model_copy(update={"weights": None}))
    changed = check_data(manifest, datasets, config, run=source.run if source is not None else manifest.path)
    if changed is not None:
        starter.on_note(f"resume: {changed}: accepted")
    return config, datasets


def compare(config: TrainConfig, begun: TrainConfig, origins: dict[str, str], *, origin: str) -> list[str]:
    """A line if the user's settings make it another run than the one begun.

    Raises:
        ConfigError: they ask for another network or other random draws, so that the state does not fit.
    """
    differing = [
        field
        for field in TrainConfig.model_fields
        if origins[field] != origin and field not in OF_ONE_ATTEMPT | FOUND_ELSEWHERE
        if getattr(config, field) != getattr(begun, field)
    ]
    for field in differing:
        if field in IDENTITY:
            place = "" if origins[field] == "flag" else f" (from {origins[field]})"
            raise ConfigError(
                f"{flag_name(field)} {getattr(config, field)}{place}: {origin} was made with {getattr(begun, field)}: "
                f"leave {flag_name(field)} out to continue the run, or begin another one"
            )
    if not differing:
        return []
    changes = ", ".join(f"{field} {getattr(begun, field)} -> {getattr(config, field)}" for field in differing)
    return [f"resume: {changes}: not the run that was begun"]


def _keep_index(run: Path, datasets: Datasets, config: TrainConfig, starter: Starter, *, changed: bool) -> None:
    """Keep the list of the images, where there is none yet or it is no longer true."""
    if starter.leads and config.mode in TRAINING and (changed or not (run / INDEX_FILE).exists()):
        keep_index(run, datasets)


def _attempt(config: TrainConfig, run: Path, number: int, manifest: Manifest | None, starter: Starter) -> Attempt:
    if manifest is None:
        return Attempt(config, run, number, None)
    starter.on_note(f"resume: {run}: attempt {number} goes on from {manifest.path} ({where(manifest.content)})")
    return Attempt(config, run, number, manifest.path)
