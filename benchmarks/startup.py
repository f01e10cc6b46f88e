"""Start of the trainer: from the command to the line of its first step, against two plain scripts, in turn.

The CPU seconds count all processes of a start up to that line. The bar: a first step within 1.5 times the time in which
a script imports torch and builds the model. The second script also imports torchvision's transforms and does a step of
SGD, as most training does. Both import torch._dynamo (torch 2.14), which takes half as long as torch; a trainer of one
process does not, and with several DistributedDataParallel does.

All have one thread and no loader processes, for which the scripts have no images. A default start of the trainer also
starts loaders (`--workers`), and gives each rank its part of the processors (`--threads`).
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.data.digits import write_digits

ROUNDS, QUICK_ROUNDS = 9, 1
BAR = 1.5
MODEL = """
import torch
torch.set_num_threads(1)
from trainer.model.pnasnet import build_model
from trainer.shared.config import TrainConfig
model = build_model(TrainConfig(model="pnasnet5tiny", image_size=32, aux="none"), 10)
"""
STEP = """
from torchvision.transforms import v2
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
torch.nn.functional.cross_entropy(model(torch.zeros(16, 3, 32, 32)), torch.zeros(16).long()).backward()
optimizer.step()
"""
END = "print('] step ', flush=True); input()"
PEER, PEER_STEP, FIRST, RANKS, RESUMED = (
    "script: `import torch`, tiny model",
    "script: the same, torchvision, one step of SGD",
    "trainer, `--workers 0`: new run to its first step",
    "trainer, `--workers 0`: the same with 2 ranks",
    "trainer, `--workers 0`: resumed run to its next step",
)
OPTIONS = (
    *("--device", "cpu", "--model", "pnasnet5tiny", "--image-size", "32", "--batch-size", "16", "--aux", "none"),
    *("--threads", "1", "--workers", "0", "--steps", "1", "--log-interval", "1"),
)


PHASES = {
    " attempt n=": "wall time up to the attempt's line: settings, place, folder, checkpoint's hashes",
    "] start ": "from there to the worker's first line: its imports, index, rendezvous, network, resume",
    "] step ": "from there to the step: records, first batch, step",
}
"""The line that ends each phase of the trainer's start."""


class Cost(NamedTuple):
    """Seconds of a start, and of each of its `PHASES`."""

    wall: float
    cpu: float
    phases: tuple[float, ...]


def measure(quick: bool) -> list[Figure]:
    """Return the figures of each start of the trainer, against both scripts."""
    with tempfile.TemporaryDirectory() as name:
        costs = _costs(Path(name), QUICK_ROUNDS if quick else ROUNDS)

    def figure(case: str, peer: str, clock: str, bar: Bar | None = None) -> Figure:
        ours, theirs = (Series(name, [getattr(cost, clock) for cost in costs[name]]) for name in (case, peer))
        return Figure("wall time" if clock == "wall" else "CPU time", "s", ours, theirs, bar)

    return [
        figure(FIRST, PEER, "wall", Bar(BAR)),
        figure(FIRST, PEER, "cpu"),
        *(figure(case, PEER_STEP, clock) for case in (FIRST, RANKS, RESUMED) for clock in ("wall", "cpu")),
        *(
            Figure(phase, "s", Series(case, [cost.phases[number] for cost in costs[case]]))
            for case in (FIRST, RANKS, RESUMED)
            for number, phase in enumerate(PHASES.values())
        ),
    ]


def _costs(folder: Path, rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of each case, in turns."""
    write_digits(folder / "digits")
    whole = _trainer(folder, "saved", "--epochs", "1")
    subprocess.run(whole, stdout=subprocess.DEVNULL, check=True)
    timed = ("--mode", "performance", "--warmup-steps", "0")
    commands = {
        PEER: (sys.executable, "-c", MODEL + END),
        PEER_STEP: (sys.executable, "-c", MODEL + STEP + END),
        FIRST: _trainer(folder, "new", *timed),
        RANKS: _trainer(folder, "new", *timed, "--npus", "2"),
        RESUMED: _trainer(folder, "new", "--resume", "auto", "--epochs", "2"),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, words in commands.items():
            shutil.rmtree(folder / "out" / "new", ignore_errors=True)
            if name == RESUMED:
                shutil.copytree(folder / "out" / "saved", folder / "out" / "new")
            costs[name].append(_cost(words))
    # The first round fills the page cache.
    return {name: values[1:] for name, values in costs.items()}


def _trainer(folder: Path, run: str, *options: str) -> Sequence[str]:
    places = ("--data-path", str(folder / "digits"), "--output", str(folder / "out"), "--run-name", run)
    return (sys.executable, "-m", "trainer", *places, *OPTIONS, *options)


def _cost(words: Sequence[str]) -> Cost:
    marks = [time.perf_counter()]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for mark in PHASES if "trainer" in words else ("] step ",):
            while mark not in process.stdout.readline():
                if process.poll() is not None:
                    raise subprocess.CalledProcessError(process.returncode, words)
            marks.append(time.perf_counter())
        cpu_s = _cpu_s(process.pid)
        process.communicate("\n")
    phases = tuple(after - before for before, after in itertools.pairwise(marks))
    return Cost(marks[-1] - marks[0], cpu_s, phases)


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of its descendants, living and ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(_cpu_s(int(child)) for child in children)


BENCHMARK = Benchmark(
    name="startup",
    title="Start of the trainer",
    method=(
        "From the command to the line of the first step of the tiny model; CPU time counts all processes up to it. All "
        "have one thread and no loader processes; a default start of the trainer also starts loaders."
    ),
    measure=measure,
    packages=("torch", "torchvision"),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
