"""The decisions of `prove --tune`, on simulated machines: their noise is worse than a real one's should be."""

import itertools
import math
import os
import random
import sys
from collections.abc import Callable, Mapping

import pytest

from trainer.proof.gains import estimate_gain, is_faster, is_not_worth_it, student_t
from trainer.proof.switches import Switch
from trainer.proof.timing import LossSpread, Refusal, RunSettings, RunTiming
from trainer.proof.tuning import TriedSwitch, Tuning
from trainer.shared.errors import TrainerError

MACHINES = int(os.environ.get("PNAS_TEST_TUNING_MACHINES", "40"))
"""Simulated machines of each kind; the bars were measured with 2,000 (two minutes)."""
LOSSES = (7.0, 6.5, 6.0)
Noise = Callable[[random.Random], Callable[[], float]]


def _even(draw: random.Random) -> Callable[[], float]:
    return lambda: draw.gauss(0, 0.02)


def _drifting(draw: random.Random) -> Callable[[], float]:
    """The machine becomes slower all the time, as one that gets warm."""
    count = itertools.count()
    return lambda: 0.01 * next(count) + draw.gauss(0, 0.01)


def _with_outliers(draw: random.Random) -> Callable[[], float]:
    """One run of ten takes up to twice as long, since another program was busy."""
    return lambda: draw.gauss(0, 0.01) + (draw.random() < 0.1) * draw.uniform(0, 0.7)


def _in_phases(draw: random.Random) -> Callable[[], float]:
    """The machine is slower for some runs in a row, again and again."""
    slow = False

    def noise() -> float:
        nonlocal slow
        slow ^= draw.random() < 0.2
        return 0.15 * slow + draw.gauss(0, 0.01)

    return noise


NOISES: Mapping[str, Noise] = {
    "even": _even,
    "drifting": _drifting,
    "with outliers": _with_outliers,
    "in phases": _in_phases,
}


class _Machine:
    """A machine on which each setting has a factor of the time, and some change losses or fail."""

    def __init__(self, factors: Mapping[str, float], noise: Callable[[], float] = lambda: 0.0) -> None:
        self.factors, self.noise = factors, noise
        self.changing: set[str] = set()
        self.failing: set[str] = set()
        self.runs: list[RunSettings] = []

    def time_run(self, settings: RunSettings) -> RunTiming | Refusal:
        self.runs.append(dict(settings))
        names = {f"{name}={value}" for name, value in settings.items()}
        if names & self.failing:
            return Refusal("no end within 60 s")
        seconds = math.prod(self.factors.get(name, 1.0) for name in names) * math.exp(self.noise())
        losses = (LOSSES[0], LOSSES[1] * (1 + 1e-7), LOSSES[2]) if names & self.changing else LOSSES
        return RunTiming(100 / seconds, losses)


def _switch(name: str, *values: str) -> Switch:
    return Switch(name, values, "a reason")


def _tune(machine: _Machine, *switches: Switch) -> tuple[Tuning, list[TriedSwitch]]:
    tuning = Tuning(machine.time_run, switches)
    tuning.repeat_defaults()
    return tuning, list(tuning.try_switches())


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_a_switch_that_brings_nothing_is_hardly_ever_chosen(noise: Noise) -> None:
    """Fifteen switches without an effect: at most one machine of twenty gets one, before and after the confirmation."""
    wrong = 0
    for seed in range(MACHINES):
        machine = _Machine({}, noise(random.Random(seed)))
        tuning, _ = _tune(machine, *(_switch(f"S{number}", "1") for number in range(15)))
        if tuning.best:
            tuning.confirm()
        wrong += bool(tuning.best)
    sys.stdout.write(f"{wrong} of {MACHINES} machines get a switch\n")
    # Three standard deviations of a count whose share is one of twenty.
    assert wrong <= 0.05 * MACHINES + 3 * math.sqrt(0.05 * 0.95 * MACHINES), f"{wrong} of {MACHINES} machines"


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_best_of_eight_values_is_found_and_one_that_changes_losses_is_refused(noise: Noise) -> None:
    wrong = []
    for seed in range(MACHINES):
        draw = random.Random(seed)
        values = [str(number) for number in range(8)]
        draw.shuffle(values)
        best, changing, *others = values
        factors = {f"S={value}": draw.uniform(0.8, 1.3) for value in others} | {f"S={best}": 0.5, f"S={changing}": 0.3}
        machine = _Machine(factors, noise(draw))
        machine.changing = {f"S={changing}"}
        tuning, [tried] = _tune(machine, _switch("S", *values))
        verdicts = {value.value: value.verdict for value in tried.values}
        assert verdicts[changing] == "refused", f"seed {seed}"
        wrong += [seed] if tuning.best != {"S": best} or tuning.confirm().verdict != "chosen" else []
    sys.stdout.write(f"{len(wrong)} of {MACHINES} machines keep the defaults or a slower value\n")
    assert len(wrong) <= 0.02 * MACHINES, wrong


def test_switches_are_tried_one_after_the_other_each_from_the_best_so_far() -> None:
    machine = _Machine({"A=1": 0.8, "B=1": 0.7, "C=1": 1.2})
    tuning, tried = _tune(machine, _switch("A", "1"), _switch("C", "1"), _switch("B", "1"))
    assert tuning.best == {"A": "1", "B": "1"}
    assert [one.chosen is not None for one in tried] == [True, False, True]
    assert {"A": "1", "B": "1"} in machine.runs
    assert all("A" in settings for settings in machine.runs if "B" in settings or "C" in settings)
    together = tuning.confirm()
    assert together.verdict == "chosen"
    assert together.gain is not None
    assert together.gain.ratio == pytest.approx(1 / 0.8 / 0.7)


def test_runs_take_turns_and_every_other_round_goes_backwards() -> None:
    machine = _Machine({"A=1": 0.8, "A=2": 0.8001})
    _tune(machine, _switch("A", "1", "2"))
    assert [settings.get("A", "-") for settings in machine.runs[3:]] == [*"-12", *"21-", *"-1"]


def test_settings_that_help_only_apart_are_forgotten_at_the_confirmation() -> None:
    machine = _Machine({"A=1": 0.8})
    tuning, _ = _tune(machine, _switch("A", "1"))
    machine.factors = {}
    assert tuning.confirm().verdict == "brings nothing"
    assert tuning.best == {}


def test_a_value_whose_run_fails_is_refused_with_its_reason_and_the_tuning_goes_on() -> None:
    machine = _Machine({"A=2": 0.8})
    machine.failing = {"A=1"}
    tuning, [tried] = _tune(machine, _switch("A", "1", "2"))
    assert tuning.best == {"A": "2"}
    assert str(tried.values[0]) == "1: refused, no end within 60 s"
    assert machine.runs.count({"A": "1"}) == 1, "it is not tried again"


def test_a_run_with_the_defaults_may_fail_once_but_not_twice() -> None:
    timing = RunTiming(1.0, LOSSES)
    answers = iter(list[RunTiming | Refusal]([timing, Refusal("busy"), timing, Refusal("busy"), Refusal("gone")]))
    tuning = Tuning(lambda _settings: next(answers), [])
    with pytest.raises(TrainerError, match=r"^a run with the defaults fails twice: gone$"):
        tuning.repeat_defaults()


def test_losses_that_repeat_must_be_equal_bit_for_bit() -> None:
    spread = LossSpread()
    for _ in range(3):
        spread.add(LOSSES)
    assert str(spread) == "bit-equal"
    assert spread.change(LOSSES) == ""
    least = (LOSSES[0], LOSSES[1], math.nextafter(LOSSES[2], 0))
    assert spread.change(least) == "changes the loss of step 3 by 1.5e-16; repetitions of the defaults are bit-equal"
    assert spread.change((LOSSES[0], None, LOSSES[2])).startswith("changes the loss of step 2 by inf")


def test_losses_that_differ_from_run_to_run_may_differ_as_much() -> None:
    """Each step of a device that adds in another order each time differs by more than the step before."""
    draw = random.Random(1)

    def losses(size: float) -> tuple[float, ...]:
        return tuple(7 - step / 10 + size * 4**step * draw.uniform(-1, 1) for step in range(8))

    refused = changed = 0
    for _ in range(200):
        spread = LossSpread()
        for _ in range(3):
            spread.add(losses(1e-7))
        refused += bool(spread.change(losses(1e-7)))
        changed += bool(spread.change(losses(1e-4)))
    assert refused < 20
    assert changed > 190


def test_a_loss_that_is_not_finite_equals_only_another_one() -> None:
    spread = LossSpread()
    spread.add((7.0, None))
    assert spread.change((7.0, None)) == ""
    assert spread.change((7.0, 6.0)) != ""


@pytest.mark.parametrize(
    ("confidence", "freedom", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.95, 7, 1.8946), (0.999, 6, 5.2076)],
)
def test_students_quantiles_are_the_published_ones(confidence: float, freedom: int, quantile: float) -> None:
    assert student_t(confidence, freedom) == pytest.approx(quantile, rel=1e-4)


def test_an_interval_narrows_with_rounds_and_one_round_decides_nothing() -> None:
    logs = [math.log(1.1), math.log(1.12), math.log(1.11), math.log(1.1), math.log(1.12)]
    widths = [estimate_gain(logs[:count], 0.01).high - estimate_gain(logs[:count], 0.01).low for count in (3, 4, 5)]
    assert widths == sorted(widths, reverse=True)
    assert not is_faster([0.7], 0.05)
    assert not is_not_worth_it([-0.7])
    assert is_not_worth_it([-0.7, -0.69])
