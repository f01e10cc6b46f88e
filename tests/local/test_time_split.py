"""Where the time goes, in real processes: a planted delay is named as what limits the speed."""

import os
from pathlib import Path

import pytest

from tests.local.conftest import FORK, small_options, train
from tests.local.forked_trainer import FIRST_MODULE
from trainer.training.time_split import PARTS

ROUNDS = int(os.environ.get("PNAS_TEST_PLANTED_DELAYS", "1"))
"""Runs with each delay."""
OPTIONS = small_options("--npus", "2", "--epochs", "1", "--steps", "4", "--log-interval", "2", "--batch-size", "2")


@pytest.mark.skipif(not FORK, reason="a delay is planted in a fork")
@pytest.mark.parametrize("limit", ["data", "host", "peers", "saving"])
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_planted_delay_is_named_and_the_parts_are_the_wall_time(
    few_digits: Path, tmp_path: Path, limit: str, number: int
) -> None:
    environ = {FIRST_MODULE: "tests.local.planted_delay", "PNAS_TEST_DELAY": limit}
    result = train(tmp_path, *OPTIONS, data=few_digits, environ=environ)
    assert result.code == 0, result.stdout + result.stderr
    (times,) = result.events("time")
    assert times["limit"] == limit, times
    if limit == "peers":
        assert (times["slowest_rank"], times["slowest_part"]) == ("1", "host")
    rows = result.metrics("time")
    assert [row["global_step"] for row in rows] == [1, 3]
    whole = sum(float(times[f"{name}_s"]) for name in PARTS)
    assert sum(row[f"{name}_s"] for row in rows for name in PARTS) == pytest.approx(whole, rel=0.02)
    (summary,) = result.events("result")
    # This wall time is taken when the last checkpoint begins to be written, and all ranks wait for it then.
    assert whole >= 0.98 * float(summary["wall_s"])
