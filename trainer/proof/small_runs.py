"""Whole runs of the trainer in small: its smallest network on a few images of noise, for some seconds.

A run is a separate process, as a user starts it, on one device: variables of the job around it, such as its rank
table, do not reach it.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import STATE_FILE
from trainer.checkpoint.reading import list_checkpoints
from trainer.proof.check import CheckPlace, Context
from trainer.proof.sample_images import write_images
from trainer.proof.timed_run import cause
from trainer.shared.config.layers import flag_name
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import exclusive, replacing
from trainer.shared.runs import CHECKPOINTS_FOLDER
from trainer.shared.start import module_command
from trainer.topology.visible import FOLDER_VARIABLE, VISIBLE_VARIABLES

SMALL_RUN: Mapping[str, Any] = {
    **{"model": "pnasnet5tiny", "image_size": 64, "aux": "none", "batch_size": 16, "epochs": 1, "steps": 3},
    **{"lr": 3e-4, "npus": 1, "workers": 0, "threads": 1, "restarts": 0, "log_interval": 1},
}
"""The smallest network, with a learning rate at which rounding grows slowly."""
_IMAGES = 192
_JOB_VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
        *("MINDX_TASK_ID", "ASCEND_PROCESS_LOG_PATH", "ASCEND_WORK_PATH"),
    }
)

_REFUSAL = re.compile(r"\] error (?P<option>--[a-z-]+ \w+): (?P<reason>.*): .*")
"""How a trainer refuses an option; the last words say what to do."""


@dataclass(frozen=True)
class SmallRun:
    """A run that has ended, by itself or because of a signal.

    Attributes:
        code: the exit code, negative for a signal.
        acted_s: seconds from the signal that it got to its end; 0 without one.
    """

    code: int
    output: str
    folder: Path
    acted_s: float

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of each step; NaN where it is not finite."""
        rows = map(json.loads, (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return tuple(math.nan if row["loss"] is None else row["loss"] for row in rows if row["kind"] == "step")

    def state_sha256(self) -> str:
        """Return the hash of its newest checkpoint's state: weights, momentum, statistics, random states."""
        newest = list_checkpoints(self.folder / CHECKPOINTS_FOLDER)[0]
        return hashlib.sha256((newest / STATE_FILE).read_bytes()).hexdigest()


@dataclass(frozen=True)
class RunFigures:
    """What a finished run leaves for a comparison."""

    losses: tuple[float, ...]
    state_sha256: str


_FIGURES: dict[tuple[object, ...], RunFigures] = {}
"""Runs with which several checks of this process compare others."""


def finished_run(context: Context, **options: Any) -> RunFigures:
    """Return the figures of an undisturbed run with these options; each is started once in a process.

    Raises:
        TrainerError: the run failed.
    """
    key = (context.place.devices, *sorted(options.items()))
    if key not in _FIGURES:
        context.mark(f"a run with {_words(options)}")
        run = require(run_trainer(context, f"run-{len(_FIGURES)}", **options))
        _FIGURES[key] = RunFigures(run.losses, run.state_sha256())
    return _FIGURES[key]


def finished_cpu_run(context: Context, **options: Any) -> RunFigures:
    """Return the figures of such a run on the CPU, which the first process that asks for it starts for all of them.

    Raises:
        TrainerError: the run failed.
    """
    options = {"device": "cpu", **options}
    folder = context.shared / "cpu-runs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{_words(options)}.json"
    context.mark(f"waiting for a run with {_words(options)} of another process")
    with exclusive(folder):
        if not path.exists():
            figures = asdict(finished_run(context, **options))
            with replacing(path, sync=False) as partial:
                partial.write_text(json.dumps(figures), encoding="utf-8")
    figures = json.loads(path.read_text(encoding="utf-8"))
    return RunFigures(tuple(figures["losses"]), figures["state_sha256"])


def run_trainer(
    context: Context,
    name: str,
    *,
    at: str = "",
    act: Callable[["subprocess.Popen[str]"], object] = lambda process: None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> SmallRun:
    """Run the trainer to its end.

    Args:
        name: of the run's folder in the check's.
        at: the first line with this text calls `act`; empty for no line.
        options: of the trainer, by their fields' names, over SMALL_RUN.
    """
    images = context.shared / "images"
    with exclusive(context.shared):
        if not images.exists():
            partial = context.shared / "images.partial"
            write_images(partial, _IMAGES, SMALL_RUN["image_size"])
            partial.rename(images)
    settings = {"device": context.place.kind, **SMALL_RUN, **options}
    settings |= {"data_path": images, "output": context.folder, "run_name": name}
    words = [word for field, value in settings.items() for word in (flag_name(field), str(value))]
    lines, acted = [], 0.0
    with subprocess.Popen(
        [*module_command("trainer.cli"), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # The user's cache needs no index of images that are deleted at the end.
        env={
            **run_environment(context.place, os.environ),
            "XDG_CACHE_HOME": str(context.shared / "cache"),
            **(environ or {}),
        },
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if at and not acted and at in line:
                acted = time.monotonic()
                act(process)
    ended = time.monotonic()
    return SmallRun(process.returncode, "".join(lines), context.folder / name, ended - acted if acted else 0.0)


class RefusedOptionError(TrainerError):
    """The trainer refuses an option on this device."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option
        """As on the command line, such as `--precision bf16`."""
        self.reason = reason


def require(run: SmallRun, code: int = 0) -> SmallRun:
    """Return the run if it ended with this code.

    Raises:
        RefusedOptionError: it did not, because of an option.
        TrainerError: it did not; with the cause that it gives.
    """
    if run.code != code:
        if run.code == UsageError.exit_code and (refusal := _REFUSAL.search(run.output)):
            raise RefusedOptionError(refusal["option"], refusal["reason"])
        reason = cause(run.output, run.code, run.folder.parent)
        raise TrainerError(f"the run {run.folder.name}, which must end with {code}, ended with {reason}")
    return run


def run_environment(place: CheckPlace, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the job around this process, and with only the place's devices."""
    own = {
        name: value
        for name, value in environ.items()
        if name not in _JOB_VARIABLES and (name == FOLDER_VARIABLE or not name.startswith("PNAS_"))
    }
    own["RANK_TABLE_FILE"] = ""
    if place.kind in VISIBLE_VARIABLES:
        variable = VISIBLE_VARIABLES[place.kind]
        chosen = [part.strip() for part in own[variable].split(",")] if own.get(variable) else None
        own[variable] = ",".join(str(device) if chosen is None else chosen[device] for device in place.devices)
    return own


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{flag_name(field)} {value}" for field, value in options.items()) or "the defaults"
