"""Time some steps of the real trainer with given settings, in a separate process and with images of noise.

So each setting has the form in which a user gives it, and the times hold all that a run does: loaders, the host's
work, the device's and the collectives. A run that hangs is ended from outside.
"""

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.devices.runtime_env import ENABLE, JIT_COMPILE
from trainer.proof.check import CheckPlace
from trainer.proof.switches import is_environment_variable
from trainer.proof.timing import Refusal, RunSettings, RunTiming
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name
from trainer.shared.files import text_if_readable
from trainer.shared.redaction import Redactor
from trainer.shared.start import module_command
from trainer.shared.text import visible

TRAINER_COMMAND = module_command("trainer.__main__")
WARMUP_STEPS = 5
"""Enough for the allocator's caches, and for a graph, which is captured in the first steps."""
_FIRST_STEPS, _FEWEST_STEPS, _MOST_STEPS = 10, 8, 200
_FIRST_LIMIT_S = 1800.0
"""A first run can compile kernels for many minutes."""
_LIMIT_FACTOR, _SHORTEST_LIMIT_S = 4, 60.0
"""A setting with which a run takes this many times as long is no candidate."""
_LEARNING_RATE = "0.01"
"""Small enough for finite losses with images of noise; a step takes as long with any other."""
_LONGEST_REASON = 300
_TAG = re.compile(r"^\[[^\]]*\] ")
_CAUSE = re.compile(r"\bfailed rank=|^error[: ]")

RunCommand = Callable[[Sequence[str], Mapping[str, str], Path, float], int | None]
"""Runs a command line with an environment, its output in a file, within some seconds; returns its exit code, or None if
it was killed at the limit."""


class TimedTrainer:
    """Runs of the trainer on this machine's devices; the first run shows how many steps fit.

    Args:
        place: The devices.
        config: The user's settings.
        environ: The user's variables, which say the same, and others.
        folder: For images and runs; it need not exist.
        run_command: Runs a program to its end.
        timed_s: How long the timed steps of a run shall take.
    """

    def __init__(
        self,
        place: CheckPlace,
        config: TrainConfig,
        environ: Mapping[str, str],
        folder: Path,
        run_command: RunCommand,
        *,
        timed_s: float,
    ) -> None:
        self.run_s = math.nan
        """The seconds of the last run that did not fail."""
        self.facts: Mapping[str, Any] = {}
        """The provenance of the first run."""
        self._steps = _FIRST_STEPS
        self._place, self._config, self._environ = place, config, environ
        self._folder, self._run_command, self._timed_s = folder, run_command, timed_s
        self._images_per_step = config.batch_size * config.accumulate * len(place.devices)
        self._limit_s = _FIRST_LIMIT_S
        self._runs = 0

    def prepare(self) -> Refusal | None:
        """Choose the number of steps by a first run with the defaults, which also fills caches; return why it fails."""
        self._folder.mkdir(mode=0o700)
        timing = self._add_images() or self.time_run({})
        if isinstance(timing, Refusal):
            return timing
        step_s = self._images_per_step / timing.images_per_s
        self._steps = min(max(_FEWEST_STEPS, math.ceil(self._timed_s / step_s)), _MOST_STEPS)
        self.run_s += (self._steps - _FIRST_STEPS) * step_s
        self._limit_s = max(_SHORTEST_LIMIT_S, _LIMIT_FACTOR * self.run_s)
        # One epoch holds all steps: between two, loaders start again.
        return self._add_images()

    def time_run(self, settings: RunSettings) -> RunTiming | Refusal:
        """Train some steps with these settings in place of the defaults."""
        self._runs += 1
        run = self._folder / f"run-{self._runs}"
        start = time.monotonic()
        try:
            failure = self._train(run, settings)
            if failure is not None:
                return failure
            self.run_s = time.monotonic() - start
            if not self.facts:
                self.facts = json.loads(text_if_readable(run / "provenance.json") or "{}")
            return read_timing(text_if_readable(run / "metrics.jsonl").splitlines())
        finally:
            shutil.rmtree(run, ignore_errors=True)

    def _add_images(self) -> Refusal | None:
        count = (WARMUP_STEPS + self._steps) * self._images_per_step
        words = (str(self._folder / "images"), str(count), str(self._config.image_size))
        return self._run([*module_command("trainer.proof.sample_images"), *words], {}, self._limit_s)

    def _train(self, run: Path, settings: RunSettings) -> Refusal | None:
        chosen = [f"{flag_name(name)}={value}" for name, value in settings.items() if not is_environment_variable(name)]
        variables = {name: value for name, value in settings.items() if is_environment_variable(name)}
        compiles = variables.get(JIT_COMPILE) == ENABLE or settings.get("compile") == "true"
        limit_s = _FIRST_LIMIT_S if compiles else self._limit_s
        return self._run([*TRAINER_COMMAND, *self._options(run), *chosen], variables, limit_s)

    def _run(self, command: Sequence[str], variables: RunSettings, limit_s: float) -> Refusal | None:
        """Run a program to its end; return why it has failed."""
        output = self._folder / "output"
        # Files that a killed program leaves go with the folder.
        environ = {**self._environ, "TMPDIR": str(self._folder), **variables}
        code = self._run_command(command, environ, output, limit_s)
        if code is None:
            return Refusal(f"no end within {limit_s:.0f} s: its processes were ended")
        return Refusal(cause(text_if_readable(output), code, self._folder)) if code else None

    def _options(self, run: Path) -> tuple[str, ...]:
        values = {
            "--device": self._place.kind,
            "--npus": str(len(self._place.devices)),
            "--nodes": "1",
            "--mode": "performance",
            "--data-path": str(self._folder / "images"),
            "--output": str(run.parent),
            "--run-name": run.name,
            "--steps": str(self._steps),
            "--warmup-steps": str(WARMUP_STEPS),
            "--lr": _LEARNING_RATE,
            "--lr-batch": "none",
            "--restarts": "0",
        }
        return tuple(word for pair in values.items() for word in pair)


def read_timing(lines: Iterable[str]) -> RunTiming:
    """Return the speed after the warm-up, and all losses, of a run's metrics."""
    rows = [json.loads(line) for line in lines]
    losses = tuple(row["loss"] for row in rows if row["kind"] == "step")
    ends = [(row["global_step"] + 1, row["fps"]) for row in rows if row["kind"] == "progress"]
    begins = (0, *(end for end, _ in ends))
    # A line of the log ends the warm-up.
    windows = [(end - begin, fps) for begin, (end, fps) in zip(begins, ends, strict=False) if begin >= WARMUP_STEPS]
    return RunTiming(sum(steps for steps, _ in windows) / sum(steps / fps for steps, fps in windows), losses)


def cause(output: str, code: int, *folders: Path) -> str:
    """Return why a trainer has failed, from its output, without secrets and the paths of this machine."""
    lines = [visible(_TAG.sub("", line)).strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if _CAUSE.search(line)]
    reason = (causes or lines or [""])[-1]
    for path in (*folders, Path.home()):
        reason = reason.replace(str(path), "…")
    reason = Redactor().text(reason[:_LONGEST_REASON])
    return f"exit code {code}: {reason}" if reason else f"exit code {code}"
