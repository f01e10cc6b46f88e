"""pnasnet5large at 331 px against timm's: a training step, an evaluation, and the peak memory of a step.

Time: the networks are in one process with the same weights and images, and take turns; the result is the median, of
wall time and of CPU time. Ours has the layout in memory that `--memory-format auto` chooses; timm's has both, and the
better one counts. Memory: each network runs in a new process; the result is the growth of its peak resident set over
the interpreter and its libraries.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from benchmarks.report import processor, publish
from trainer.devices.cpu import CpuDevice
from trainer.model.folding import folded
from trainer.model.pnasnet import LARGE, PNASNet5

SIDE, IMAGES, WARM_UP, ROUNDS = 331, 2, 2, 7
"""Rounds of the warm-up and of the measurement; the first steps of a process wait for its memory."""
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
OURS = CpuDevice.memory_format
STEP_BAR, RECOMPUTING_BAR, EVALUATION_BAR, MEMORY_BAR = 0.80, 1.30, 0.65, 0.90


class Seconds(NamedTuple):
    """Of one step."""

    wall: float
    cpu: float


def main(arguments: list[str] | None = None) -> int:
    """Measure and publish; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "LAYOUT"), help=argparse.SUPPRESS)
    options = parser.parse_args([] if arguments is None else arguments)
    if options.memory_of:
        print(json.dumps(_peak_memory(*options.memory_of)))
        return 0
    steps, evaluations = _in_turns("step", _training_steps()), _in_turns("evaluation", _evaluations())
    mebibytes = {
        (network, layout): _new_process_peak_memory(network, layout)
        for network, layout in (("ours", OURS), ("ours, recomputing", OURS), *(("timm", layout) for layout in LAYOUTS))
    }
    lines, met = _report(steps, evaluations, mebibytes)
    publish("model_step.md", lines)
    return 0 if met else 1


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


def _in_turns(what: str, steps: dict[tuple[str, str], Callable[[], None]]) -> dict[tuple[str, str], Seconds]:
    """Return the median times of each; steps take turns, so that noise of the machine affects all."""
    times: dict[tuple[str, str], list[Seconds]] = {key: [] for key in steps}
    for round_ in range(WARM_UP + ROUNDS):
        for key, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if round_ >= WARM_UP:
                times[key].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
            print(f"\r{what}: round {round_ + 1} of {WARM_UP + ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {key: Seconds(*map(statistics.median, zip(*taken, strict=True))) for key, taken in times.items()}


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
    command = [sys.executable, "-m", "benchmarks.model_step", "--memory-of", name, layout]
    # malloc returns large blocks to the system at once, so that the peak counts only memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(json.loads(output))


def _report(
    steps: dict[tuple[str, str], Seconds],
    evaluations: dict[tuple[str, str], Seconds],
    mebibytes: dict[tuple[str, str], float],
) -> tuple[list[str], bool]:
    """Return the lines of the page, and whether all bars are met."""
    ours, recomputing = ("ours", OURS), ("ours, recomputing", OURS)
    bars = [
        ("training step, wall time", steps[ours].wall / _best(steps).wall, STEP_BAR),
        ("training step, CPU time", steps[ours].cpu / _best(steps).cpu, STEP_BAR),
        (
            "with --activation-checkpointing, wall time against ours without",
            steps[recomputing].wall / steps[ours].wall,
            RECOMPUTING_BAR,
        ),
        ("evaluation, wall time", evaluations[ours].wall / _best(evaluations).wall, EVALUATION_BAR),
        ("evaluation, CPU time", evaluations[ours].cpu / _best(evaluations).cpu, EVALUATION_BAR),
        (
            "peak memory of a training step",
            mebibytes[ours] / min(mebibytes["timm", name] for name in LAYOUTS),
            MEMORY_BAR,
        ),
    ]
    rows = [
        f"| {network} | {layout} | {step.wall:.2f} s | {step.cpu:.2f} s "
        f"| {_seconds(evaluations.get((network, layout)))} | {mebibytes[network, layout]:,.0f} MiB |"
        for (network, layout), step in steps.items()
    ]
    lines = [
        "# Training step and evaluation of pnasnet5large",
        "",
        f"{SIDE} px, fp32, {IMAGES} images; a step is forward, backward and fused SGD with momentum; median of "
        f"{ROUNDS} rounds in turns after {WARM_UP} to warm up. Ours evaluates with folded batch norms. Memory is the "
        "growth of the peak resident set of a new process whose malloc keeps no free blocks.",
        "",
        "    python -m benchmarks.model_step",
        "",
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}, "
        f"{processor()}, {torch.get_num_threads()} threads",
        "",
        "| network | layout | step, wall | step, CPU | evaluation, wall and CPU | peak memory |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "| against timm's better layout | ratio | bar |",
        "|---|---|---|",
        *(f"| {name} | {ratio:.3f} | {bar:.2f} |" for name, ratio, bar in bars),
    ]
    return lines, all(ratio <= bar for _, ratio, bar in bars)


def _best(times: dict[tuple[str, str], Seconds]) -> Seconds:
    return min((seconds for (network, _), seconds in times.items() if network == "timm"), key=lambda best: best.wall)


def _seconds(times: Seconds | None) -> str:
    return "-" if times is None else f"{times.wall:.2f} s, {times.cpu:.2f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
