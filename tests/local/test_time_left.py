"""The time that a run still takes, as real trainers say it: runs with slow stretches, stops and evaluations."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.local.conftest import FORK
from tests.local.disturbed_runs import SHORTEST, real_forecast

RUNS = int(os.environ.get("PNAS_TEST_FORECASTS", "0"))
"""Runs of two to four minutes, several at a time; 0 for one short run, of which only the sound form is checked."""
FIRST_SEED = int(os.environ.get("PNAS_TEST_FORECAST_SEED", "11"))
AT = 0.1
_AT_ONCE = 10


@pytest.mark.skipif(not FORK, reason="the delays are planted in a fork")
def test_the_time_left_is_right_in_real_disturbed_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine of ten are within 10 %, and nine of ten intervals hold the truth."""
    monkeypatch.setenv(SHORTEST, "110" if RUNS else "10")
    seeds = range(FIRST_SEED, FIRST_SEED + max(1, RUNS))
    # A process starts one trainer at a time.
    with ProcessPoolExecutor(_AT_ONCE, mp_context=get_context("spawn")) as processes:
        runs = [processes.submit(real_forecast, seed, digits, tmp_path / str(seed), at=AT) for seed in seeds]
        forecasts = [run.result() for run in runs]
    lines = [
        f"seed {seed}: {one.said.seconds:.0f} s ({one.said.low_s:.0f} to {one.said.high_s:.0f}), "
        f"true {one.true_s:.0f} s: {one.error:+.1%}, holds: {one.holds}"
        for seed, one in zip(seeds, forecasts, strict=True)
    ]
    within, held = sum(abs(one.error) <= 0.1 for one in forecasts), sum(one.holds for one in forecasts)
    lines.append(f"{within} of {len(lines)} within 10 %, {held} intervals hold")
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines, ""]))
    assert all(one.said.low_s < one.said.seconds < one.said.high_s for one in forecasts), lines
    if RUNS:
        assert min(within, held) >= 0.9 * RUNS, lines
