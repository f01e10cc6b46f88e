"""`prove --tune`, from its checks of the input to the last comparison: a row of the report for each switch."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.environment.affinity import read_affinity
from trainer.environment.facts import find_npu_smi
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.proof.bounded_command import BoundedCommands, SignalledError
from trainer.proof.check import CheckOutcome, CheckPlace, ProofCheck, Result
from trainer.proof.gains import FEWEST_ROUNDS, MOST_ROUNDS
from trainer.proof.switches import Switch, switches_of
from trainer.proof.timed_run import RunCommand, TimedTrainer
from trainer.proof.timing import join_settings
from trainer.proof.tuned_profile import TunedProfile
from trainer.proof.tuning import REPEATS, TriedSwitch, TriedValue, Tuning
from trainer.shared.config import TrainConfig, resolve_train_config, user_layers
from trainer.shared.container import usable_processors
from trainer.shared.errors import TrainerError
from trainer.topology.visible import Visible

TUNED = "tuned.yaml"
_CPU_RECIPE = {"PNAS_MODEL": "pnasnet5mobile", "PNAS_IMAGE_SIZE": "96", "PNAS_BATCH_SIZE": "8"}
"""On a CPU without other settings: a step of the default network takes a minute there."""
_TIMED_S, _TIMED_ON_CPU_S = 10.0, 3.0
"""The time of a run's timed steps. A CPU tries the command rather than finds settings: its tuning shall end soon."""
_OPEN = "The tuning has not ended: chosen settings were not compared with the defaults together."
_NOTHING = "No setting is clearly faster here than the defaults."


@dataclass(frozen=True)
class TuningPlan:
    """What to tune, and for what."""

    place: CheckPlace
    config: TrainConfig
    environ: Mapping[str, str]
    switches: tuple[Switch, ...]
    profile: TunedProfile
    timed_s: float
    """How long the timed steps of a run take."""

    @property
    def rows(self) -> list[str]:
        """The names of its results."""
        return ["tune-defaults", *(f"tune-{switch.name}" for switch in self.switches), "tune-together"]


def plan_tuning(
    visible: Visible, devices: int, profile: Path, environ: Mapping[str, str], *, on_cpu: bool
) -> TuningPlan:
    """Return what to try on this machine's devices. The user's variables say what a step is.

    Args:
        on_cpu: Whether a CPU computes the steps, be it as an emulated NPU.

    Raises:
        UsageError: A setting is wrong, or `profile` exists.
    """
    if on_cpu and environ.keys().isdisjoint({*_CPU_RECIPE, "PNAS_PROFILE"}):
        environ = {**environ, **_CPU_RECIPE}
    config, _ = resolve_train_config(user_layers({"mode": "performance"}, None, environ))
    affinity = read_affinity(visible, NpuSmiProgram(find_npu_smi(environ) or "npu-smi"), environ)
    processors = max(1, usable_processors() // devices)
    switches = switches_of(visible.kind, config, environ, devices=devices, processors=processors, affinity=affinity)
    place = CheckPlace(visible.kind, tuple(range(devices)), 0, 0)
    timed_s = _TIMED_ON_CPU_S if on_cpu else _TIMED_S
    return TuningPlan(place, config, environ, switches, TunedProfile(profile), timed_s)


def run_tuning(
    plan: TuningPlan,
    checks: Sequence[ProofCheck],
    results: Sequence[Result],
    scratch: Path,
    *,
    say: Callable[[str], None],
    report: Callable[[Result], None],
) -> int | None:
    """Try the switches in processes that a signal ends, if all devices have opened; see `tune_switches`.

    Args:
        checks: That have run.
        results: Of these checks.
    """
    opening = {check.name for check in checks if check.opens}
    if closed := [one.place for one in results if one.check in opening and one.outcome.verdict != "passed"]:
        say(f"no tuning: first see to {', '.join(closed)}")
        return None
    with BoundedCommands() as commands:
        return tune_switches(plan, scratch, commands.run, say=say, report=report)


def tune_switches(
    plan: TuningPlan,
    scratch: Path,
    run_command: RunCommand,
    *,
    say: Callable[[str], None],
    report: Callable[[Result], None],
) -> int | None:
    """Try the switches, and write the profile.

    Args:
        scratch: A folder that need not exist; it is deleted.
        run_command: Raises a SignalledError if the tuning must end.
        say: Gets lines for the user.
        report: Gets the row of the defaults, of each switch, and of all chosen settings together.

    Returns:
        The signal that has ended it early, or None.
    """
    rows, stop = iter(plan.rows), None
    row, start = next(rows), time.monotonic()
    try:
        with plan.profile:
            for outcome in _tune(plan, scratch, run_command, say):
                report(Result(row, plan.place.name, outcome, time.monotonic() - start))
                row, start = next(rows, ""), time.monotonic()
    except SignalledError as error:
        outcome, stop = CheckOutcome("unfinished", "interrupted"), error.number
    except (TrainerError, OSError) as error:
        outcome = CheckOutcome("failed", str(error), advice="correct this first: nothing more was tried")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if row:
        report(Result(row, plan.place.name, outcome, time.monotonic() - start))
    return stop


def _tune(
    plan: TuningPlan, scratch: Path, run_command: RunCommand, say: Callable[[str], None]
) -> Iterator[CheckOutcome]:
    """Yield the outcome of each row of the plan, when the profile has it.

    Raises:
        TrainerError: a run with the defaults, or with the chosen settings, fails; the profile cannot be written.
    """
    values = sum(len(switch.values) for switch in plan.switches)
    say(f"tuning: {values} values of {len(plan.switches)} switches; a first run shows how long they take")
    trainer = TimedTrainer(plan.place, plan.config, plan.environ, scratch, run_command, timed_s=plan.timed_s)
    if (refusal := trainer.prepare()) is not None:
        raise TrainerError(f"a run with the defaults fails: {refusal.reason}")
    say(f"tuning takes {_estimate(plan.switches, trainer.run_s)}; Ctrl-C keeps what was found so far")
    tuning, tried = Tuning(trainer.time_run, plan.switches), list[TriedSwitch]()
    spread = tuning.repeat_defaults()
    yield CheckOutcome("passed", f"losses of {REPEATS} runs are {spread}; a run takes {trainer.run_s:.0f} s")
    for one in tuning.try_switches():
        tried.append(one)
        plan.profile.save(trainer.facts, tuning.best, tried, _OPEN)
        yield _outcome(one.values)
    if not tuning.best:
        plan.profile.save(trainer.facts, {}, tried, _NOTHING)
        yield CheckOutcome("passed", f"{_NOTHING} {plan.profile.path} says what was tried")
        return
    together = tuning.confirm()
    plan.profile.save(trainer.facts, tuning.best, tried, f"Together, against the defaults: {together}")
    yield _outcome((together,))
    say(f"{plan.profile.path} sets {join_settings(tuning.best)}")


def _estimate(switches: Sequence[Switch], run_s: float) -> str:
    """Return how long the tuning takes: mostly few rounds show enough, at most all are needed."""
    runs = sum(1 + len(switch.values) for switch in switches) + 2
    few, most = (math.ceil((REPEATS + rounds * runs) * run_s / 60) for rounds in (FEWEST_ROUNDS, MOST_ROUNDS))
    return f"about {few} minutes, and {most} at most"


def _outcome(values: Sequence[TriedValue]) -> CheckOutcome:
    gain = next((value.gain for value in values if value.verdict == "chosen"), None)
    figures = {} if gain is None else {"times_as_fast": gain.ratio}
    return CheckOutcome("passed", "; ".join(map(str, values)), "the same losses, in less time", figures=figures)
