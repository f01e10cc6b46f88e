"""What `--resume` continues: which job, which run, and the settings that need not be given again.

The trainer decides from which checkpoint a run goes on. The launcher finds the run's job, so that the short command
`submit --name NAME --resume auto` is all that has to be typed after a job has ended before its time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher.errors import ConflictError, RequestError
from launcher.jobs import Backend, JobState, known
from launcher.settings.hardware import without_preset
from launcher.settings.layers import Earlier, Settings
from launcher.settings.options import PLACE
from launcher.settings.spec import is_job_name
from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.train import checkpoint_layer

if TYPE_CHECKING:
    from launcher.cluster.jobs import ClusterBackend

CHECKPOINTS = "checkpoints"
_NOTHING = Layer("--resume", {})
# An attempt has its own of these.
_OF_THE_ATTEMPT = frozenset({"resume", "run_name"})
# Where the job is, is said anew; what the overlay's file said is kept, and the file may be gone.
_UNKNOWN_LATER = PLACE | {"overlay"}


def find_earlier(asked: Settings, backend: Backend) -> tuple[str, Earlier]:
    """The name of the job that is continued or begun, and what is known of its run.

    Raises:
        RequestError: no job is named, the run that is named cannot be a job's, or another output folder was given.
        ConflictError: the job of this name has another run.
    """
    path = None if asked.train.resume == "auto" else Path(str(asked.train.resume)).expanduser().absolute()
    if path is not None and not path.is_dir():
        what = "is a file; weights are given with --weights" if path.exists() else "no such folder"
        raise RequestError(f"--resume {path}: {what}; give a run's folder or one of its checkpoints")
    run = None if path is None else run_of(path)
    name = asked.options.name or _name_of(run, asked, backend)
    job = known(backend, name)
    if job is not None and job.output is not None:
        if path is not None and (run is None or run.resolve() != job.output.resolve()):
            raise ConflictError(f"there is a job {name} already, whose run is {job.output}: choose another --name")
        return name, _of_job(job, asked)
    if run is None:
        return name, Earlier(_NOTHING, _begun(asked.train.output / name))
    in_place = name == run.name and asked.origins["output"] == "default"
    return name, Earlier(Layer("--resume", {"output": run.parent}) if in_place else _NOTHING, _begun(run))


def find_cluster_earlier(asked: Settings, backend: "ClusterBackend") -> tuple[str, Earlier]:
    """The same for a job on a cluster, whose folder cannot be seen from here.

    Raises:
        RequestError: no job is named, or a path is no absolute one.
    """
    resume, name = asked.train.resume, asked.options.name
    if resume != "auto" and not Path(str(resume)).is_absolute():
        raise RequestError(f"--resume {resume}: give the absolute path that the pod sees, or auto")
    if name is None:
        jobs = _resumable(backend, none="no job here can be continued")
        raise RequestError(f"--resume {resume} needs --name, the job to continue or to begin: {jobs}")
    job = (known(backend, name) or backend.kept(name)) if resume == "auto" else None
    if job is None:
        return name, Earlier(_NOTHING, _NOTHING)
    origin = f"attempt {job.attempt}"
    pods = without_preset(job.spec.get("pods", {}))
    if job.spec.get("train", {}).get("device") == "cpu":
        del pods["hardware"]  # it had none for that reason alone
    own = {field: value for field, value in pods.items() if field not in _UNKNOWN_LATER}
    return name, Earlier(Layer(origin, _given(job.spec)), _NOTHING, Layer(origin, own), job.spec.get("overlay", {}))


def run_of(path: Path) -> Path | None:
    """The run's folder that `path` is, or is in; None if that cannot be told."""
    above = next((part for part in (path, *path.parents) if part.name == CHECKPOINTS), None)
    if above is not None:
        return above.parent
    return path if (path / "config.yaml").is_file() or (path / CHECKPOINTS).is_dir() else None


def _name_of(run: Path | None, asked: Settings, backend: Backend) -> str:
    """The name that was left out: the run's own."""
    if asked.train.resume == "auto":
        jobs = _resumable(backend, none="none of this machine's jobs can be continued")
        raise RequestError(f"--resume auto needs --name, the job to continue: {jobs}")
    if run is None:
        raise RequestError(
            f"--resume {asked.train.resume}: not a run's folder nor in one; give that, or a new job's --name to begin "
            "from this checkpoint"
        )
    if not is_job_name(run.name):
        raise RequestError(
            f"--resume {asked.train.resume}: its run's name, {run.name}, cannot be a job's; give a new job's --name to "
            "begin from its state"
        )
    return run.name


def _resumable(backend: Backend, *, none: str) -> str:
    """The latest jobs that can be continued, for a person who named none."""
    names = [f"{state.ref.name} ({state.phase.value})" for state in backend.list() if state.resumable]
    return f"it can be {', '.join(names[-8:])}" if names else none


def _given(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings that the earlier attempt was given."""
    train: Mapping[str, Any] = spec.get("train", {})
    names = spec.get("given", train)
    return {name: train[name] for name in names if name in train and name not in _OF_THE_ATTEMPT}


def _of_job(job: JobState, asked: Settings) -> Earlier:
    """What the earlier attempt was given. Its paths are absolute: this one may be started from another folder."""
    assert job.output is not None  # the caller has looked
    folder = job.output.parent
    if asked.origins["output"] != "default" and asked.train.output.expanduser().absolute() != folder:
        raise RequestError(
            f"--output {asked.train.output}: job {job.ref.name} writes to {folder}; leave --output out to continue it"
        )
    return Earlier(Layer(f"attempt {job.attempt}", {**_given(job.spec), "output": folder}), _begun(job.output))


def _begun(run: Path) -> Layer:
    """The settings that the run was begun with, as far as they can be read."""
    path = run / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    known = values.items() if isinstance(values, dict) else ()
    return checkpoint_layer(str(path), {name: value for name, value in known if name in TrainConfig.model_fields})
