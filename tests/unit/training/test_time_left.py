"""The time that a run still takes: its parts, its interval, and how right it is on disturbed runs."""

import os
from itertools import count

import pytest

from tests.unit.training.simulated_runs import SimulatedRun
from trainer.training.progress import TrainingProgress
from trainer.training.time_left import EXPECTED_LATER, MOST_BLOCKS, SAY_S, RunPace, Stopwatch, TimeLeft, Work

RUNS = int(os.environ.get("PNAS_FORECASTS", "20"))
"""More than 20 take some seconds per hundred."""
AT = 0.1
LATER = 1 + EXPECTED_LATER


def _pace(*seconds: float, steps: int = 10) -> RunPace:
    pace = RunPace()
    for value in seconds:
        pace.add_steps(steps, value)
    return pace


def _left(pace: RunPace, done: Work, total: Work, images: int = 0) -> TimeLeft:
    left = pace.time_left(done, total, images_per_step=10, images=images)
    assert left is not None
    return left


def test_the_time_left_is_right_on_disturbed_runs() -> None:
    """Nine of ten are within 10 %, nine of ten intervals hold the truth, half of which are narrow."""
    forecasts = [SimulatedRun(seed).forecast(at=AT) for seed in range(RUNS)]
    figures = "\n".join(f"seed {seed}: {one.error:+.1%}, holds: {one.holds}" for seed, one in enumerate(forecasts))
    assert sum(abs(forecast.error) <= 0.1 for forecast in forecasts) >= 0.9 * RUNS, figures
    assert sum(forecast.holds for forecast in forecasts) >= 0.9 * RUNS, figures
    assert sorted(forecast.width for forecast in forecasts)[RUNS // 2] <= 0.35, figures


def test_an_even_run_takes_as_long_as_its_steps_and_evaluations() -> None:
    pace = _pace(*[5.0] * 8)
    pace.add_end(100.0)
    left = _left(pace, Work(80, 1, 1), Work(400, 5, 5))
    assert left.seconds == pytest.approx(LATER * (320 * 0.5 + 4 * 100))
    assert left.done == pytest.approx(100 * 140 / 700)
    assert left.low_s < left.seconds < left.high_s


def test_nothing_is_said_before_a_step_beyond_the_slow_first_ones() -> None:
    pace = RunPace()
    pace.add_first_steps(10, 300.0, of_process=True)
    assert pace.time_left(Work(10, 1, 0), Work(100, 1, 1), images_per_step=10, images=50) is None
    pace.add_steps(10, 10.0)
    assert _left(pace, Work(20, 1, 1), Work(100, 1, 1)).seconds == pytest.approx(LATER * 80)


@pytest.mark.parametrize(
    ("cause", "seconds"),
    [
        # A tenth of the past was four times slower: it counts for a fourth more.
        ("a slow stretch", 9 * [10.0] + [40.0]),
        ("a fast stretch", 9 * [10.0] + [1.0]),
    ],
)
def test_a_short_stretch_counts_only_in_part(cause: str, seconds: list[float]) -> None:
    left = _left(_pace(*seconds), Work(100, 1, 1), Work(200, 1, 1))
    assert left.seconds == pytest.approx(LATER * 100, rel=0.12), cause


def test_a_lasting_change_counts_in_full_and_an_earlier_doubt_is_in_the_interval() -> None:
    early = _left(_pace(*[10.0] * 8, *[20.0] * 2), Work(100, 1, 1), Work(200, 1, 1))
    assert early.high_s >= 200
    late = _left(_pace(*[10.0] * 8, *[20.0] * 12), Work(200, 1, 1), Work(300, 1, 1))
    assert late.seconds == pytest.approx(LATER * 200, rel=0.1)


def test_an_evaluation_that_was_never_seen_costs_a_share_of_a_step_per_image() -> None:
    left = _left(_pace(10.0, 10.0), Work(20, 1, 0), Work(20, 1, 1), images=1000)
    assert left.seconds == pytest.approx(LATER * 0.4 * 100)
    assert left.low_s < 0.25 * 100
    assert left.high_s > 1.2 * 100


def test_the_starts_of_epochs_and_saves_count_and_the_start_of_the_process_does_not_come_again() -> None:
    pace = _pace(*[10.0] * 4)
    pace.add_first_steps(10, 310.0, of_process=True)
    for _ in range(3):
        pace.add_first_steps(10, 12.0, of_process=False)
    pace.add_save(4.0)
    left = _left(pace, Work(80, 4, 4), Work(160, 8, 4))
    assert left.seconds == pytest.approx(LATER * (80 * (1 + 4 / 40) + 4 * 2))


def test_the_memory_of_a_long_run_stays_small_and_survives_a_checkpoint() -> None:
    pace = RunPace()
    for _ in range(10_000):
        pace.add_steps(10, 10.0)
    assert len(pace.blocks) <= MOST_BLOCKS
    assert sum(block.steps for block in pace.blocks) == 100_000
    progress = TrainingProgress(pace=pace)
    assert TrainingProgress.from_json(progress.to_json()) == progress


def test_a_checkpoint_of_an_earlier_version_begins_without_times() -> None:
    values = TrainingProgress(epoch=3).to_json()
    del values["pace"]
    assert TrainingProgress.from_json(values) == TrainingProgress(epoch=3)


def test_the_stopwatch_takes_saves_out_of_steps_and_knows_the_first_ones() -> None:
    now = 0.0
    pace = RunPace()
    stopwatch = Stopwatch(pace, clock=lambda: now)
    stopwatch.begin_steps()
    stopwatch.add_steps(10, 60.0)
    with stopwatch.saving():
        now = 7.0
    stopwatch.add_steps(10, 17.0)
    stopwatch.end_steps()
    now = 57.0
    stopwatch.begin_steps()
    stopwatch.add_steps(10, 13.0)
    stopwatch.add_steps(10, 10.0)
    assert (pace.saving_s, pace.restarts, pace.starts, pace.ends) == (7.0, [60.0], [3.0], [50.0])
    assert [(block.steps, block.seconds) for block in pace.blocks] == [(10, 10.0), (10, 10.0)]


def test_epochs_of_a_single_log_line_are_steps_as_others() -> None:
    pace = RunPace()
    stopwatch = Stopwatch(pace, clock=lambda: 0.0)
    for _ in range(3):
        stopwatch.begin_steps()
        stopwatch.add_steps(10, 10.0, whole_epoch=True)
    assert (len(pace.restarts), len(pace.blocks)) == (1, 2)


def test_the_time_left_is_printed_rarely() -> None:
    moments = count(0.0, SAY_S / 4)
    stopwatch = Stopwatch(RunPace(), clock=lambda: next(moments))
    done = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 10.0]
    said = [stopwatch.is_worth_a_line(TimeLeft(value, 1.0, 1.0, 1.0)) for value in done]
    assert said == [True, False, False, False, True, False, True, False]
