"""Starts jobs on this machine. `launcher.submitters.Submitter` says what each method promises.

The trainer decides from which checkpoint a run goes on. The launcher finds the run's job, so that the short command
`submit --name NAME --resume auto` is enough after a job has ended before its time.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from launcher import PROGRAM
from launcher.errors import ConflictError, LauncherError, RequestError
from launcher.exits import defer_signals
from launcher.jobs import JobRef, JobState, PreflightFinding, Submitted, find_state, resumable_names
from launcher.local import records
from launcher.local.cluster_only import ignored_variables, refuse_cluster_only
from launcher.local.jobs import LocalJobs
from launcher.local.preflight import check_paths, examine_machine, path_exists
from launcher.local.trial import check_by_trainer
from launcher.settings.layers import NO_LAYER, Defaults, Earlier, Settings, given_settings
from launcher.settings.options import is_job_name
from launcher.settings.spec import JobSpec, free_name, in_field_order, trainer_options
from trainer.shared import variables
from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.train import checkpoint_layer
from trainer.shared.files import exclusive, with_home
from trainer.shared.runs import run_folder_of
from trainer.shared.start import module_command
from trainer.shared.strict_yaml import parse_texts


@dataclass(frozen=True)
class LocalSubmitter:
    """Starts jobs on this machine."""

    jobs: LocalJobs

    def defaults(self) -> Defaults | None:
        """Return None: only a cluster has an administrator."""
        return None

    def earlier(self, settings: Settings) -> tuple[str, Earlier]:
        """Find the job and the run that are continued.

        Raises:
            RequestError: no job is named, the run's name cannot be a job's name, or --output is another folder.
            ConflictError: the job of this name has another run.
        """
        train = settings.train
        path = None if train.resume == "auto" else _absolute(Path(str(train.resume)))
        if path is not None and not path.is_dir():
            problem = "is a file; weights are given with --weights" if path.exists() else "no such folder"
            raise RequestError(f"--resume {path}: {problem}; give a run's folder or one of its checkpoints")
        run = None if path is None else run_folder_of(path)
        name = settings.options.name or self._name_of(run, settings)
        job = find_state(self.jobs, name)
        if job is not None and job.output is not None:
            if path is not None and (run is None or run.resolve() != job.output.resolve()):
                raise ConflictError(f"there is a job {name} already, whose run is {job.output}: choose another --name")
            return name, _earlier_attempt(self.jobs, job, job.output, settings)
        if run is None:
            return name, Earlier(begun=_begun_with(train.output / name))
        in_place = name == run.name and settings.origins["output"] == "default"
        given = Layer("--resume", {"output": run.parent}) if in_place else NO_LAYER
        return name, Earlier(given=given, begun=_begun_with(run))

    def _name_of(self, run: Path | None, settings: Settings) -> str:
        """Return the run's own name, for a user who named no job."""
        resume = settings.train.resume
        if resume == "auto":
            names = resumable_names(self.jobs) or "none of this machine's jobs can be continued"
            raise RequestError(f"--resume auto needs --name, the job to continue: {names}")
        if run is None:
            raise RequestError(
                f"--resume {resume}: neither a run's folder nor inside one; give a run's folder, or --name NEW to "
                "start a new job from this checkpoint"
            )
        if not is_job_name(run.name):
            raise RequestError(
                f"--resume {resume}: its run's name, {run.name}, cannot be a job's; give --name NEW to start a new job "
                "from its state"
            )
        return run.name

    def build(self, settings: Settings, *, now: datetime, again: bool = False) -> JobSpec:
        """Return the spec: the time of day names the job, so each start is a new job, and all paths are absolute.

        With `again`, a name that the user gave gets a number.
        """
        refuse_cluster_only(settings)
        train, name = settings.train, settings.options.name
        if name is None or (again and train.resume is None):
            name = self._free_name(settings, now)
        fields = type(train).model_fields
        paths = {field: _absolute(value) for field in fields if isinstance(value := getattr(train, field), Path)}
        return JobSpec(
            name=name,
            backend=self.jobs.name,
            train=train.model_copy(update={**paths, "run_name": name}),
            given=in_field_order({*settings.given, "output", "run_name"}),
            continues=train.resume is not None,
            origins={name: origin for name, origin in settings.changed_origins.items() if name in fields},
        )

    def _free_name(self, settings: Settings, now: datetime) -> str:
        train, output = settings.train, _absolute(settings.train.output)
        # Weights bring their model along, and are not read here.
        is_known = train.weights is None or "model" in settings.given
        scale = f"{train.model.removeprefix('pnasnet5')}-" if is_known else ""
        return free_name(
            settings.options.name or f"pnas-{train.mode}-{scale}{now:%m%d-%H%M%S}",
            lambda name: find_state(self.jobs, name) is not None or path_exists(output / name),
        )

    def check(self, spec: JobSpec, *, ask_server: bool) -> tuple[str, list[str]]:
        """Check what `submit` checks.

        Raises:
            RequestError: there is no server to ask, or the job cannot run here.
            ConflictError: the name is taken, or the job to continue still runs.
        """
        if ask_server:
            raise RequestError("--dry-run server: a job on this machine has no server to ask; use --dry-run client")
        check_paths(spec)
        state = find_state(self.jobs, spec.name)
        if state is not None and not spec.continues:
            raise _taken(spec.name)
        if state is not None:
            _check_ended(state)
        if (trial := _trial(spec)) is not None:
            trial()
        return "its settings are valid", ignored_variables(os.environ)

    def submit(self, spec: JobSpec) -> Submitted:
        """Start the trainer in a process that outlives the launcher."""
        check_paths(spec)
        command, environ = _command(spec)
        record = {"spec": spec.model_dump(mode="json"), "output": str(spec.output)}
        ref = start_job(self.jobs, spec.name, command, record, environ, resume=spec.continues, check=_trial(spec))
        return Submitted(ref, ignored_variables(os.environ), attempt=self.jobs.get(ref).attempt)

    def examine(self, settings: Settings) -> Iterator[PreflightFinding]:
        """Yield what this machine has for the job, and what it lacks."""
        yield from examine_machine(self.build(settings, now=datetime.now().astimezone()))


def _command(spec: JobSpec) -> tuple[list[str], dict[str, str]]:
    """Return the trainer's command line and environment."""
    # The command line has every setting; a variable must not set one a second time.
    settings = {*map(variables.name_of, [*type(spec.train).model_fields, variables.PROFILE])}
    environ = {name: value for name, value in os.environ.items() if name not in settings}
    return [*module_command("trainer.__main__"), *trainer_options(spec)], environ


def _trial(spec: JobSpec) -> Callable[[], None] | None:
    """Return the trainer's check of a run that continues; a new run has no checkpoint, and is checked as it starts."""
    begun = spec.continues and (spec.train.resume != "auto" or path_exists(spec.output))
    return partial(check_by_trainer, *_command(spec)) if begun else None


def start_job(
    jobs: LocalJobs,
    name: str,
    command: list[str],
    record: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    resume: bool = False,
    check: Callable[[], None] | None = None,
) -> JobRef:
    """Start any command as a job, or with `resume` as the next attempt of an ended one.

    Args:
        record: the spec and the output folder.
        check: raises an error if the command would be refused; then there is neither a job nor an attempt.
    """
    folder, ref = jobs.root / name, JobRef(jobs.name, name)
    job = {"name": name, "created": time.time(), "host": socket.gethostname(), "cwd": str(Path.cwd())}
    job |= {"command": command, **record}
    with defer_signals():
        if resume and folder.is_dir():
            with exclusive(folder):
                _check_ended(jobs.get(ref))
                if check is not None:
                    check()
                records.begin_next(folder, job)
            _start_runner(folder, environ)
        else:
            _create_record(folder, job)
            try:
                if check is not None:
                    check()
                _start_runner(folder, environ)
            except (LauncherError, KeyboardInterrupt):
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return ref


def _earlier_attempt(jobs: LocalJobs, job: JobState, output: Path, settings: Settings) -> Earlier:
    """Return the settings of the last attempt that began; its paths are absolute, wherever the user is now."""
    folder = output.parent
    if settings.origins["output"] != "default" and _absolute(settings.train.output) != folder:
        raise RequestError(
            f"--output {settings.train.output}: job {job.ref.name} writes to {folder}; leave --output out to continue "
            "it"
        )
    begun = records.latest_begun(jobs.root / job.ref.name)
    given = Layer(f"attempt {records.attempt_of(begun)}", {**given_settings(begun.get("spec", {})), "output": folder})
    return Earlier(given=given, begun=_begun_with(output))


def _begun_with(run: Path) -> Layer:
    """Return the settings with which the run began, as far as they can be read."""
    path = run / "config.yaml"
    try:
        values = parse_texts(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    items = values.items() if isinstance(values, dict) else ()
    settings = {name: value for name, value in items if name in TrainConfig.model_fields}
    begun = checkpoint_layer(str(path), settings)
    # The trainer keeps these too, if this machine has them.
    kept = {name: settings[name] for name in ("device", "npus") if name in settings}
    return Layer(begun.origin, {**begun.values, **kept})


def _check_ended(state: JobState) -> None:
    if not state.phase.ended:
        reason = f", {state.reason}" if state.reason else ""
        raise ConflictError(
            f"job {state.ref.name} still runs ({state.phase.value}{reason}): follow it with `{PROGRAM} logs "
            f"{state.ref.name} -f`, or cancel it first"
        )


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"there is a job {name} already: choose another --name, continue it with --resume auto, or "
        f"`{PROGRAM} delete {name}`"
    )


def _create_record(folder: Path, job: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise _taken(folder.name) from None
    except OSError as error:
        raise LauncherError(f"{folder}: cannot be created: {error.strerror}; set XDG_STATE_HOME") from error
    try:
        records.write_record(folder / records.JOB, "LocalJob", job)
    except LauncherError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _start_runner(folder: Path, environ: Mapping[str, str]) -> None:
    """Start the runner of a recorded job, and return when it has recorded the trainer's process."""
    with (folder / records.CONSOLE).open("ab") as console:
        runner = subprocess.run(
            [*module_command("launcher.local.runner"), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
            text=True,
            errors="replace",
            check=False,
        )
    if runner.returncode:
        lines = runner.stderr.splitlines() or [f"its runner ended with exit code {runner.returncode}"]
        raise LauncherError(f"job {folder.name} could not be started: {lines[-1]}")


def _absolute(path: Path) -> Path:
    return with_home(path).absolute()
