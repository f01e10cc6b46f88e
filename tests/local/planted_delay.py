"""Slows one part of a worker down by two seconds for each step; the variable PNAS_TEST_DELAY names the part.

A worker imports it first; see `tests.local.forked_trainer`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch.distributed as dist

from trainer.data.loader import train_batches
from trainer.training.schedule import learning_rate

_DELAY_S = 2.0
"""Four of them are more than the evaluation of the smallest network takes on a busy machine."""
_fsync = os.fsync


def _slow_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
    for batch in train_batches(*arguments, **options):
        time.sleep(_DELAY_S)
        yield batch


def _slow_rate(*arguments: Any, **options: Any) -> float:
    if _PART == "host" or dist.get_rank() == 1:
        time.sleep(_DELAY_S)
    return learning_rate(*arguments, **options)


def _slow_fsync(file: int) -> None:
    if threading.current_thread().name == "checkpoint":
        time.sleep(_DELAY_S)
    _fsync(file)


_PART = os.environ["PNAS_TEST_DELAY"]
_PATCHES: dict[str, tuple[str, Callable[..., Any]]] = {
    "data": ("trainer.training.modes.train_batches", _slow_batches),
    "host": ("trainer.training.steps.learning_rate", _slow_rate),
    "peers": ("trainer.training.steps.learning_rate", _slow_rate),
    "saving": ("os.fsync", _slow_fsync),
}
mock.patch(*_PATCHES[_PART]).start()
