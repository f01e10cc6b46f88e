"""Runs that are stopped or killed on the way, and how they are compared with one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.local.conftest import SMALL, small
from trainer.checkpoint.files import read_manifest

RECIPE = {
    "--batch-size": "16",
    "--epochs": "2",
    "--steps": "8",
    "--ema": "0.9",
    "--drop-path": "0.2",
    "--schedule": "cosine-step",
    "--log-interval": "2",
    "--checkpoint-every": "3",
    "--lr": "0.05",
}
WALL_CLOCK = {"wall_s", "seconds"}


def recipe(*options: str) -> tuple[str, ...]:
    """`options`, and those of RECIPE that they do not set themselves."""
    return small(*options, *(word for flag, value in RECIPE.items() if flag not in options for word in (flag, value)))


def claimed() -> str:
    """What a resumed run says of its bits; nobody has seen what an NPU's kernels keep."""
    return "yes" if SMALL["--device"] == "cpu" else '"not proven"'


class Started:
    """A trainer that runs, with what it has printed in a file."""

    def __init__(self, output: Path, data: Path, *options: str, name: str) -> None:
        self._said = output / f"{name}-{time.monotonic_ns()}.log"
        where = ("--data-path", str(data), "--output", str(output), "--run-name", name)
        with self._said.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *where, *recipe(*options)], stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        """All of it so far."""
        return self._said.read_text()

    def until(self, seen: Callable[[str], bool]) -> bool:
        """Wait until what it has printed satisfies `seen`; False if it ended before."""
        deadline = time.monotonic() + 300
        while not seen(self.said):
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said
            time.sleep(0.004)  # a moment is to be met, and each look reads all that was printed
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the trainer, which starts the workers."""
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        """The process ids of the workers that live, in the order of their start."""
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def kill(self, *, trainer: bool, workers: list[int]) -> None:
        """SIGKILL, all within a moment."""
        for number in ([self._process.pid] if trainer else []) + workers:
            os.kill(number, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, once it and its workers are gone."""
        return self._process.wait(timeout=300)


def assert_same(one: Path, two: Path, *, last_step: int) -> None:
    """Two runs left the same metrics, the same bytes of state, and the same values beside them."""
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    mine, others = (run / f"checkpoints/step-{last_step:09d}" for run in (one, two))
    assert (mine / "state.safetensors").read_bytes() == (others / "state.safetensors").read_bytes()
    assert _values(mine) == _values(others)
    for name in ("best", "last"):
        # safetensors writes its table in no certain order.
        weights, other = (load_file(run / f"checkpoints/{name}.safetensors") for run in (one, two))
        assert weights.keys() == other.keys()
        assert all(weights[key].equal(other[key]) for key in weights)


def _values(checkpoint: Path) -> Any:
    content = read_manifest(checkpoint).content
    return json.loads(
        json.dumps({key: content[key] for key in ("state", "progress", "arithmetic")}),
        object_hook=lambda table: {key: value for key, value in table.items() if key not in WALL_CLOCK},
    )
