"""Gives a worker its batches when a drawn run has them, and stops the trainer; the forecasts are written to a file.

A worker imports it first; see `tests.local.forked_trainer`. The batches come at a rate, as from a slow storage: the
network's arithmetic takes place meanwhile, so that a busy machine changes little. The trainer knows nothing of it.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from tests.local.disturbed_runs import FOLDER, SEED, drawn_run
from trainer.data.loader import eval_batches, train_batches
from trainer.data.sampler import EpochPlan
from trainer.training.report import left_fields
from trainer.training.time_left import TimeLeft

_FOLDER = Path(os.environ[FOLDER])
_RUN = drawn_run(int(os.environ[SEED]))
_noise = random.Random(f"{_RUN.seed} {len(list(_FOLDER.glob('stop-*')))}")


_starts = iter([_RUN.compile_s])
"""Seconds that the first steps of this process cost."""


@cache
def _note_begin() -> None:
    """Write when the work of this process begins."""
    with (_FOLDER / "begins").open("a", encoding="utf-8") as file:
        file.write(f"{time.time()}\n")


class _Source:
    """Batches that become ready one after the other."""

    def __init__(self) -> None:
        self._ready = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait until the next batch is ready, `seconds` after the one before, or now if the trainer is late."""
        self._ready = max(self._ready + seconds * _noise.lognormvariate(0, _RUN.noise), time.monotonic())
        time.sleep(max(0.0, self._ready - time.monotonic()))


def _slow_train_batches(*arguments: Any, epoch: int, plan: EpochPlan, **options: Any) -> Iterator[Any]:
    _note_begin()
    source, first = _Source(), (epoch + 1) * _RUN.steps - plan.steps
    source.wait(next(_starts, _RUN.loader_s))
    for step, batch in enumerate(train_batches(*arguments, epoch=epoch, plan=plan, **options), first):
        _stop_before(step)
        source.wait(_RUN.step_s[step])
        yield batch


def _slow_eval_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
    _note_begin()
    source, rounds = _Source(), -(-_RUN.images // _RUN.images_per_step)
    for batch in eval_batches(*arguments, **options):
        source.wait(_RUN.evaluation_s / rounds)
        yield batch


def _stop_before(step: int) -> None:
    """Stop the trainer, once for each stop of the run: one half of them by SIGTERM, the other half by SIGKILL."""
    marker = _FOLDER / f"stop-{step}"
    if step in _RUN.stops and not marker.exists():
        marker.touch()
        killed = random.Random(f"{_RUN.seed} {step}").random() < 0.5
        os.kill(os.getppid(), signal.SIGKILL if killed else signal.SIGTERM)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)


def _write_forecast(left: TimeLeft) -> dict[str, float]:
    with (_FOLDER / "forecasts").open("a", encoding="utf-8") as file:
        file.write(json.dumps([time.time(), left.seconds, left.low_s, left.high_s]) + "\n")
    return left_fields(left)


for _name, _replacement in {
    "trainer.training.modes.train_batches": _slow_train_batches,
    "trainer.training.modes.eval_batches": _slow_eval_batches,
    "trainer.training.report.left_fields": _write_forecast,
}.items():
    mock.patch(_name, _replacement).start()
