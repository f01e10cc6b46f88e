"""Begin a run, or its next attempt: from the user's settings to a folder that is locked, checked and named.

Everything that can be refused is refused before anything is changed. Steps in which several processes could spoil each
other's work happen under the run's lock.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.manifest import CheckpointManifest
from trainer.checkpoint.reading import step_of
from trainer.checkpoint.writing import clear_leftovers, set_newer_aside
from trainer.data.index import Datasets, load_datasets
from trainer.data.sampler import steps_per_epoch
from trainer.devices.runtime_env import EVENLY
from trainer.records.folder import create_run_folder, next_attempt, write_config
from trainer.records.lease import Lease
from trainer.run.image_list import keep_image_list
from trainer.run.lock import locked
from trainer.run.resume import (
    Source,
    check_data,
    choose_checkpoint,
    describe_position,
    find_source,
    is_training_state,
)
from trainer.run.snapshots import hold_memory, newest_step, usable_snapshots
from trainer.run.tries import JobRetries
from trainer.shared.config import Layer, TrainConfig, resolve_train_config
from trainer.shared.config.layers import ConfigError, flag_name
from trainer.shared.config.train import OF_ONE_ATTEMPT, OF_THE_BEGINNING, checkpoint_layer
from trainer.shared.errors import FolderTakenError, TrainerError, UsageError
from trainer.shared.files import reading, why_no_file, writing
from trainer.shared.profiles import PROFILE_REQUEST
from trainer.shared.runs import CHECKPOINTS_FOLDER, TRAINING
from trainer.topology import Topology

# With another value of one of these, it is another run.
IDENTITY = ("mode", "model", "padding", "aux", "seed")
# The images are compared by their names.
_CHECKED_ELSEWHERE = frozenset({"data_path"})


@dataclass(frozen=True)
class Attempt:
    """The run and its attempt, as the workers get them.

    Attributes:
        checkpoint: The state to continue from. On a single node it can be a snapshot.
        lease: The right to write to the run's folder. The first node holds the lock, and tells the others its token.
        memory: The folder for snapshots; None for a run without them.
        snapshots: Whole ones of this node, newest first: the workers continue from the newest that all nodes have, if
            it is newer than the checkpoint.
        steps_before_stop: Whether a stop must wait for the first step: earlier starts were stopped before theirs.
    """

    config: TrainConfig
    run: Path
    number: int
    checkpoint: Path | None
    lease: Lease
    memory: Path | None = None
    snapshots: tuple[Path, ...] = ()
    steps_before_stop: bool = False


@dataclass(frozen=True)
class RunStarter:
    """The process that starts workers, and its place in the job.

    Attributes:
        command: Its command line.
        on_note: Called with lines for the user.
        on_lost: Called from another thread when another process has taken the run's folder: the run must end.
        on_asked: Called from another thread when a later pod of the job waits for the folder: save and end then.
        retries: Of the cluster's job; None outside of a cluster.
        environment: The report of `env` about this machine, in JSON.
        affinity: CPU_AFFINITY_CONF on this node; empty for none.
    """

    topology: Topology
    command: Sequence[str]
    on_note: Callable[[str], None]
    on_lost: Callable[[TrainerError], None]
    on_asked: Callable[[], None] = lambda: None
    retries: JobRetries | None = None
    environment: str = ""
    affinity: str = EVENLY

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the workers that it starts."""
        return tuple(worker.rank for worker in self.topology.workers)

    @property
    def is_first_node(self) -> bool:
        """Whether it starts rank 0: only then it writes the files that a run has once."""
        return 0 in self.ranks

    @property
    def is_single_node(self) -> bool:
        """Whether it starts every rank."""
        return len(self.ranks) == self.topology.world_size

    def hold_lock(self, run: Path) -> contextlib.AbstractContextManager[Lease]:
        """Hold the run's lock, if this is the first node."""
        if not self.is_first_node:
            return contextlib.nullcontext(Lease(run, ""))
        return locked(run, command=self.command, on_note=self.on_note, on_lost=self.on_lost, on_asked=self.on_asked)


@contextlib.contextmanager
def begin_attempt(layers: Sequence[Layer], starter: RunStarter) -> Iterator[Attempt]:
    """Begin or continue the run that `layers`, the user's settings, name; hold its lock until the context ends.

    Raises:
        UsageError: The user's settings cannot be used; nothing was changed.
        FolderTakenError: The folder belongs to another run, or another process works in it.
        NoRetryError: The job has failed as often as it may.
        TrainerError: No checkpoint can be used, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(_checked(layers, starter))
        config, datasets, manifest = plan.config, plan.datasets, plan.manifest
        for line in datasets.left_out if starter.is_first_node else ():
            starter.on_note(line)
        stops = _check_tries(plan, starter)
        if plan.in_place is not None and plan.lease is not None:
            plan.lease.prove()
            if starter.is_first_node:
                with contextlib.suppress(OSError):  # of a launcher that waited for an earlier process of this run
                    (plan.in_place / PROFILE_REQUEST).unlink()
            run, lease, number = plan.in_place, plan.lease, _continue(plan.in_place, config, manifest, starter)
        else:
            number = 1
            run = create_run_folder(
                config, is_first_node=starter.is_first_node, is_single_node=starter.is_single_node, now=time.time()
            )
            lease = stack.enter_context(starter.hold_lock(run))
        under_torchrun = starter.topology.source == "torchrun"  # its agent starts all ranks again, in any place
        memory = None if under_torchrun else stack.enter_context(hold_memory(config, starter.on_note))
        attempt = _describe(plan, run, number, starter, lease)
        yield replace(attempt, memory=memory, steps_before_stop=stops > 0)


def restart_run(attempt: Attempt, starter: RunStarter) -> Attempt:
    """Begin the run's next attempt after its workers have crashed; this process still holds the run's lock.

    The settings stay; the checkpoint is the newest now, and the data is checked again.

    Raises:
        UsageError: The data have changed.
        TrainerError: No checkpoint can be used, or the folder cannot be written.
    """
    config, run, lease = attempt.config, attempt.run, attempt.lease
    lease.prove()
    source = Source(run, None, in_place=True, may_begin=True)
    manifest = _choose_state(attempt, source, starter) if config.mode in TRAINING else None
    if manifest is None and attempt.checkpoint is not None:  # the run began from another run's
        source = Source(run, attempt.checkpoint, in_place=True, may_begin=False)
        manifest = choose_checkpoint(source, starter.on_note)
    datasets = _check_data(config, manifest, source, starter)
    lease.prove()  # the checks take minutes
    number = _continue(run, config, manifest, starter)
    following = _describe(_Plan(config, datasets, manifest, run, lease), run, number, starter, lease)
    return replace(following, memory=attempt.memory)


def _choose_state(attempt: Attempt, source: Source, starter: RunStarter) -> CheckpointManifest | None:
    """Return the newest checkpoint, or on a single node a newer snapshot, which several nodes must agree on."""
    snapshots = []
    if starter.is_single_node:
        snapshots = usable_snapshots(
            attempt.memory, attempt.run, world_size=starter.topology.world_size, on_note=starter.on_note
        )
    step = -1 if not snapshots else step_of(snapshots[0].path) or 0
    if step > newest_step(attempt.run / CHECKPOINTS_FOLDER):
        return snapshots[0]  # the checkpoints need no look at their bytes
    manifest = choose_checkpoint(source, starter.on_note)
    return snapshots[0] if manifest is not None and step > (step_of(manifest.path) or 0) else manifest


def check_attempt(layers: Sequence[Layer], starter: RunStarter) -> None:
    """Refuse what `begin_attempt` would refuse, and change nothing.

    Raises:
        UsageError: The user's settings cannot be used.
        FolderTakenError: The folder belongs to another run, or another process works in it.
        TrainerError: No checkpoint can be used.
    """
    with _checked(layers, starter) as plan:
        run = plan.config.output / str(plan.config.run_name)
        if plan.in_place is None and plan.config.run_name is not None and run.exists():
            raise FolderTakenError(f"{run}: exists, and a run never overwrites another: choose another --run-name")


@dataclass(frozen=True)
class _Plan:
    """A checked attempt: its settings, its images, its checkpoint and the run that it continues, if there is one.

    Attributes:
        lease: Of the run that it continues.
    """

    config: TrainConfig
    datasets: Datasets
    manifest: CheckpointManifest | None
    in_place: Path | None
    lease: Lease | None


def _check_tries(plan: _Plan, starter: RunStarter) -> int:
    """Return how many of the job's last tries were stopped without progress, if there are too many; else 0.

    Raises:
        NoRetryError: The job has failed as often as it may.
    """
    if starter.retries is None or plan.in_place is None or not starter.is_first_node:
        return 0
    stops = starter.retries.check_start(plan.in_place, None if plan.manifest is None else plan.manifest.path)
    if stops:
        starter.on_note(
            f"resume: {plan.in_place}: the last {stops} tries of this job were stopped at the step at which they began "
            f"(an evaluation begins again at its first image): this one takes a step and saves before it stops, if "
            f"--grace-s {plan.config.grace_s:g} is long enough"
        )
    return stops


@contextlib.contextmanager
def _checked(layers: Sequence[Layer], starter: RunStarter) -> Iterator[_Plan]:
    """Check what the user's settings ask for; hold the lock of the run that continues."""
    request, origins = resolve_train_config(layers, partial=True)
    source = find_source(request, output_given=origins["output"] != "default")
    in_place = source.run if source is not None and source.in_place else None
    with contextlib.nullcontext() if in_place is None else starter.hold_lock(in_place) as lease:
        if in_place is not None:
            layers = [Layer("--resume", {"output": str(in_place.parent), "run_name": in_place.name}), *layers]
        trains = request.mode in TRAINING
        try:
            manifest = choose_checkpoint(source, starter.on_note) if source is not None and trains else None
            config, datasets = _check(layers, manifest, source, starter)
        except TrainerError as error:
            if starter.retries is not None and in_place is not None and starter.is_first_node:
                starter.retries.count_early_end(in_place, next_attempt(in_place, (), is_first_node=True), error)
            raise
        yield _Plan(config, datasets, manifest, in_place, lease)


def check_inputs(config: TrainConfig, world_size: int) -> Datasets:
    """Return the data; refuse data and weights that cannot be used.

    Raises:
        UsageError: One line that names what is wrong.
    """
    if config.weights is not None:
        with reading(config.weights):
            if is_training_state(config.weights):
                raise UsageError(
                    f"--weights {config.weights}: is a training state: continue it with --resume, or give the weights "
                    "in its run's checkpoints/best.safetensors"
                )
            if not config.weights.is_file():
                raise UsageError(f"--weights {config.weights}: {why_no_file(config.weights)}")
    datasets = load_datasets(config.data_path, need_train=config.mode != "eval")
    if config.mode != "eval" and datasets.train is not None:
        steps_per_epoch(
            len(datasets.train), world_size=world_size, batch_size=config.batch_size, accumulate=config.accumulate
        )
    return datasets


def _check(
    layers: Sequence[Layer], manifest: CheckpointManifest | None, source: Source | None, starter: RunStarter
) -> tuple[TrainConfig, Datasets]:
    """Return the settings and the data, after checking them and their fit with the checkpoint."""
    if manifest is None or source is None:
        config, _ = resolve_train_config(layers)
        return config, check_inputs(config, starter.topology.world_size)
    origin = f"checkpoint {manifest.path.name}"
    saved = checkpoint_layer(origin, manifest.content["config"])
    config, origins = resolve_train_config([*layers, saved])
    begun = resolve_train_config([saved], partial=True)[0]
    changes = compare(config, begun, origins, origin=origin)
    for field in OF_THE_BEGINNING:
        if getattr(config, field) != getattr(begun, field):
            starter.on_note(f"resume: {flag_name(field)} is for new runs: it stays at {getattr(begun, field)}")
            config = config.model_copy(update={field: getattr(begun, field)})
    if changes:
        starter.on_note(f"resume: {changes}: not the run that was begun")
    return config, _check_data(config, manifest, source, starter)


def _check_data(
    config: TrainConfig, manifest: CheckpointManifest | None, source: Source, starter: RunStarter
) -> Datasets:
    """Return the data, after checking them and their fit with the checkpoint."""
    if manifest is None:
        return check_inputs(config, starter.topology.world_size)
    datasets = check_inputs(config.model_copy(update={"weights": None}), starter.topology.world_size)
    accepted = check_data(manifest, datasets, config, run=source.run)
    if accepted is not None:
        starter.on_note(f"resume: {accepted}: accepted")
    return datasets


def compare(config: TrainConfig, saved: TrainConfig, origins: dict[str, str], *, origin: str) -> str:
    """Return the settings that the user changes, as `field OLD -> NEW, ...`, or an empty text.

    Raises:
        ConfigError: They ask for another network or other random draws, so the state does not fit.
    """
    fields = [
        field
        for field in TrainConfig.model_fields
        if origins[field] != origin and field not in OF_ONE_ATTEMPT | _CHECKED_ELSEWHERE.union(OF_THE_BEGINNING)
        if getattr(config, field) != getattr(saved, field)
    ]
    for field in fields:
        if field in IDENTITY:
            place = "" if origins[field] == "flag" else f" (from {origins[field]})"
            raise ConfigError(
                f"{flag_name(field)} {getattr(config, field)}{place}: {origin} was made with {getattr(saved, field)}: "
                f"leave {flag_name(field)} out to continue the run, or begin another one"
            )
    return ", ".join(f"{field} {getattr(saved, field)} -> {getattr(config, field)}" for field in fields)


def _describe(plan: _Plan, run: Path, number: int, starter: RunStarter, lease: Lease) -> Attempt:
    """Return an attempt that can begin, after keeping the list of its images and telling the user its checkpoint."""
    manifest, datasets = plan.manifest, plan.datasets
    if starter.is_first_node and plan.config.mode in TRAINING:
        saved = None if manifest is None else manifest.content["data"].get("fingerprint")
        keep_image_list(run, datasets, changed=manifest is not None and saved != datasets.fingerprint)
    if manifest is not None:
        position = describe_position(manifest.content)
        starter.on_note(f"resume: {run}: attempt {number} goes on from {manifest.path} ({position})")
    return Attempt(plan.config, run, number, None if manifest is None else manifest.path, lease)


def _continue(run: Path, config: TrainConfig, manifest: CheckpointManifest | None, starter: RunStarter) -> int:
    """Prepare the folder of a run for its next attempt; return the attempt's number."""
    number = next_attempt(run, starter.ranks, is_first_node=starter.is_first_node)
    if manifest is None and number > 1:
        reason = "no checkpoint was saved" if config.mode in TRAINING else f"--mode {config.mode} resumes nothing"
        starter.on_note(f"resume: {run}: {reason}: attempt {number} begins at the first step")
    if starter.is_first_node:
        with writing(run):
            write_config(run, config, attempt=number)
            folder = run / CHECKPOINTS_FOLDER
            clear_leftovers(folder)
            moved = [] if manifest is None else set_newer_aside(folder, manifest.path, attempt=number)
        for path in moved:
            starter.on_note(f"resume: {path} is newer: moved to set-aside-{number}/")
    return number
