"""pnasnet5large at 331 px against timm's: a training step, an evaluation, and the peak memory of a step.

Time: the networks are in one process with the same weights and images, and take turns; the result is the median, of
wall time and of CPU time. Ours has the layout in memory that `--memory-format auto` chooses; timm's has both, and the
better one counts. Memory: each network runs in a new process; the result is the growth of its peak resident set over
the interpreter and its libraries.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.devices.cpu import CpuDevice
from trainer.model.folding import folded
from trainer.model.pnasnet import LARGE, PNASNet5

SIDE, IMAGES = 331, 2
WARM_UP, ROUNDS, QUICK_ROUNDS = 2, 7, 3
"""Rounds of the warm-up and of the measurement; the first steps of a process wait for its memory."""
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
OURS = CpuDevice.memory_format
STEP_BAR, RECOMPUTING_BAR, EVALUATION_BAR, MEMORY_BAR = 0.80, 1.30, 0.65, 0.90


class Seconds(NamedTuple):
    """Of one step."""

    wall: float
    cpu: float


def measure(quick: bool) -> list[Figure]:
    """Return the figures of a step and of an evaluation, and in a whole run of the memory."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    steps = _in_turns("step", _training_steps(), rounds)
    evaluations = _in_turns("evaluation", _evaluations(), rounds)
    recomputing, ours = (
        Series(name, [seconds.wall for seconds in steps[name, OURS]]) for name in ("ours, recomputing", "ours")
    )
    return [
        *_time_figures("training step", steps, STEP_BAR),
        *_time_figures("evaluation", evaluations, EVALUATION_BAR),
        Figure("step with `--activation-checkpointing`, wall time", "s", recomputing, ours, Bar(RECOMPUTING_BAR)),
        *(() if quick else _memory_figures()),
    ]


def _time_figures(what: str, times: dict[tuple[str, str], list[Seconds]], bar: float) -> Iterator[Figure]:
    """Yield the figures against each layout of timm's; the bar holds against the faster one."""
    peers = sorted(
        (key for key in times if key[0] == "timm"),
        key=lambda key: statistics.median(seconds.wall for seconds in times[key]),
    )
    for peer in peers:
        for index, clock in enumerate(("wall", "CPU")):
            ours, theirs = (
                Series(", ".join(key), [seconds[index] for seconds in times[key]]) for key in (("ours", OURS), peer)
            )
            yield Figure(f"{what}, {clock} time", "s", ours, theirs, Bar(bar) if peer == peers[0] else None)


def _memory_figures() -> Iterator[Figure]:
    def peak(network: str, layout: str) -> Series:
        return Series(f"{network}, {layout}", [_new_process_peak_memory(network, layout)])

    ours, best = peak("ours", OURS), min((peak("timm", layout) for layout in LAYOUTS), key=lambda one: one.median)
    yield Figure("peak memory of a training step", "MiB", ours, best, Bar(MEMORY_BAR))
    recomputing = peak("ours, recomputing", OURS)
    yield Figure("the same with `--activation-checkpointing`, against a step without", "MiB", recomputing, ours)


def _network(name: str, layout: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = (
        timm.create_model("pnasnet5large")
        if name == "timm"
        else PNASNet5(LARGE, dropout=0.0, checkpoint_cells=name == "ours, recomputing")
    )
    return network.to(memory_format=LAYOUTS[layout])


def _networks() -> dict[tuple[str, str], nn.Module]:
    """Return ours and timm's in each layout, with the same weights."""
    networks = {("ours", OURS): _network("ours", OURS), **{("timm", name): _network("timm", name) for name in LAYOUTS}}
    state = networks["ours", OURS].state_dict()
    for network in networks.values():
        network.load_state_dict(state)
    return networks


def _batch(layout: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(IMAGES, 3, SIDE, SIDE).to(memory_format=LAYOUTS[layout]), torch.randint(1000, (IMAGES,))


def _training_step(network: nn.Module, layout: str) -> Callable[[], None]:
    images, labels = _batch(layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def _training_steps() -> dict[tuple[str, str], Callable[[], None]]:
    networks = _networks()
    networks["ours, recomputing", OURS] = _network("ours, recomputing", OURS)
    return {key: _training_step(network, key[1]) for key, network in networks.items()}


def _evaluations() -> dict[tuple[str, str], Callable[[], None]]:
    """Return evaluations of a batch: ours with folded batch norms, as a run evaluates."""
    networks = _networks()
    ours = networks["ours", OURS]
    assert isinstance(ours, PNASNet5)
    networks["ours", OURS] = folded(ours)

    def evaluation(network: nn.Module, layout: str) -> Callable[[], None]:
        network.eval()
        images, _ = _batch(layout)

        @torch.no_grad()
        def evaluate() -> None:
            network(images)

        return evaluate

    return {key: evaluation(network, key[1]) for key, network in networks.items()}


def _in_turns(
    what: str, steps: dict[tuple[str, str], Callable[[], None]], rounds: int
) -> dict[tuple[str, str], list[Seconds]]:
    """Return the times of each; steps take turns, so that noise of the machine affects all."""
    times: dict[tuple[str, str], list[Seconds]] = {key: [] for key in steps}
    for round_ in range(WARM_UP + rounds):
        for key, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if round_ >= WARM_UP:
                times[key].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
            print(f"\r{what}: round {round_ + 1} of {WARM_UP + rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def _peak_memory(name: str, layout: str) -> float:
    """Return the MiB by which two training steps raise this process's peak resident set."""
    before = _peak_resident()
    step = _training_step(_network(name, layout), layout)
    for _ in range(2):
        step()
    return (_peak_resident() - before) / 1024


def _peak_resident() -> int:
    """Return the peak resident set in KiB; the value of getrusage would start at the parent's size."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _new_process_peak_memory(name: str, layout: str) -> float:
    command = [sys.executable, "-m", "benchmarks.model_step", "memory-of", name, layout]
    # malloc returns large blocks to the system at once, so that the peak counts only memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(json.loads(output))


BENCHMARK = Benchmark(
    name="model_step",
    title="Training step and evaluation of pnasnet5large",
    method=f"{SIDE} px, fp32, {IMAGES} images; a step is forward, backward and fused SGD with momentum, after "
    f"{WARM_UP} to warm up. Ours evaluates with folded batch norms. Memory is the growth of the peak resident set of "
    "a new process whose malloc keeps no free blocks.",
    measure=measure,
    packages=("torch", "timm"),
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory-of"]:  # in a new process
        print(json.dumps(_peak_memory(*sys.argv[2:])))
    else:
        sys.exit(run(BENCHMARK))
