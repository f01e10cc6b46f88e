"""A followed log is complete under random faults: no line lost, none repeated, none lost without being counted."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local.log_schedules import KNOWN_SCHEDULES, Schedule, Verdict, random_schedule, run_schedule

SCHEDULES = int(os.environ.get("PNAS_LOG_SCHEDULES", "3"))
FIRST_SEED = int(os.environ.get("PNAS_LOG_FIRST_SEED", "1"))
AT_ONCE = 30
"""Schedules that run at the same time: mostly they wait."""


@pytest.mark.timeout(600 + 20 * SCHEDULES)
def test_no_schedule_of_faults_loses_or_repeats_a_line(tmp_path: Path) -> None:
    def run(schedule: Schedule) -> Verdict:
        began = time.monotonic()
        verdict = run_schedule(schedule, tmp_path / schedule.name)
        took_s, verdict_text = time.monotonic() - began, "; ".join(verdict.problems) or "good"
        sys.stdout.write(f"{schedule.name}: {took_s:.0f} s, {verdict.lost} no longer there, {verdict_text}\n")
        return verdict

    schedules = [*KNOWN_SCHEDULES, *map(random_schedule, range(FIRST_SEED, FIRST_SEED + SCHEDULES))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = list(pool.map(run, schedules))
    assert [verdict for verdict in verdicts if verdict.problems] == []
