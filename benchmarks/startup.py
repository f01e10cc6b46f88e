"""Start of the trainer: from the command to its first step, against a script that imports torch and builds the model.

`python -m benchmarks.startup` prints the ratios and writes benchmarks/results/startup.md. Every case runs once in each
round. The CPU time of a trainer includes its end; the wall time ends with the line of the step.
The bar: a first step within 1.5 times the peer's time.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import machine, publish
from trainer.data.digits import write_digits

ROUNDS = 9
BAR = 1.5
MODEL = """
import torch
from trainer.model.pnasnet import build_model
from trainer.shared.config import TrainConfig
build_model(TrainConfig(model="pnasnet5tiny", image_size=32), 10)
print("] step ")
"""
PEER, FIRST, RANKS, RESUMED = (
    "`import torch`, tiny model",
    "new run to its first step",
    "the same with 2 ranks",
    "resumed run to its next step",
)
OPTIONS = (
    *("--device", "cpu", "--model", "pnasnet5tiny", "--image-size", "32", "--batch-size", "16", "--threads", "1"),
    *("--aux", "none", "--steps", "1", "--log-interval", "1"),
)


class Cost(NamedTuple):
    """Seconds of a start."""

    wall: float
    cpu: float


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, Cost]:
    """Return the median cost of each case."""
    write_digits(folder / "digits")
    whole = _trainer(folder, "saved", "--workers", "0", "--epochs", "1")
    subprocess.run(whole, stdout=subprocess.DEVNULL, check=True)
    timed = ("--mode", "performance", "--warmup-steps", "0")
    commands = {
        PEER: (sys.executable, "-c", MODEL),
        FIRST: _trainer(folder, "new", *timed, "--workers", "0"),
        RANKS: _trainer(folder, "new", *timed, "--workers", "0", "--npus", "2"),
        RESUMED: _trainer(folder, "new", "--resume", "auto", "--workers", "0", "--epochs", "2"),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, words in commands.items():
            shutil.rmtree(folder / "out" / "new", ignore_errors=True)
            if name == RESUMED:
                shutil.copytree(folder / "out" / "saved", folder / "out" / "new")
            costs[name].append(_cost(words))
    # The first round fills the page cache.
    return {name: Cost(*map(statistics.median, zip(*values[1:], strict=True))) for name, values in costs.items()}


def _trainer(folder: Path, run: str, *options: str) -> Sequence[str]:
    places = ("--data-path", str(folder / "digits"), "--output", str(folder / "out"), "--run-name", run)
    return (sys.executable, "-m", "trainer", *places, *OPTIONS, *options)


def _cost(words: Sequence[str]) -> Cost:
    before, start = os.times(), time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "] step " not in process.stdout.readline():
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode, words)
        wall = time.perf_counter() - start
        process.stdout.read()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu)


def page(costs: dict[str, Cost]) -> list[str]:
    """Return the lines of the page, with the command and the versions that repeat it."""
    peer = costs[PEER]
    rows = [
        f"| {name} | {cost.wall:.2f} | {cost.wall / peer.wall:.2f} | {cost.cpu:.2f} | {cost.cpu / peer.cpu:.2f} |"
        for name, cost in costs.items()
    ]
    ratio = costs[FIRST].wall / peer.wall
    verdict = "met" if ratio <= BAR else "MISSED"
    return [
        "# Start-up of the trainer",
        "",
        "Command: `python -m benchmarks.startup`",
        "",
        f"Median of {ROUNDS} alternating runs.",
        f"Python {platform.python_version()}, torch {version('torch')}; {machine()}.",
        "",
        "| start | wall s | ratio | CPU s | ratio |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"- {verdict}: a new run's first step takes {ratio:.2f} of the peer's time (bar {BAR})",
    ]


def main() -> int:
    """Measure and publish; return 1 if the bar is missed."""
    with tempfile.TemporaryDirectory() as name:
        costs = measure(Path(name))
    publish("startup.md", page(costs))
    return 1 if costs[FIRST].wall > BAR * costs[PEER].wall else 0


if __name__ == "__main__":
    sys.exit(main())
