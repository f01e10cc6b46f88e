"""A training step of pnasnet5large at 331 px against timm's: time in both memory layouts, and peak memory.

Time: both networks run in one process with the same weights and images and take steps in turns; the result is the
median. Memory: each network runs in a new process; the result is the growth of its peak resident set over the
interpreter and its libraries.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from benchmarks.report import processor, publish
from trainer.model.pnasnet import LARGE, PNASNet5

SIDE, IMAGES, ROUNDS = 331, 2, 5
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
NETWORKS = ("ours", "timm")
TIME_BAR, MEMORY_BAR = 0.97, 0.90


def main(arguments: list[str] | None = None) -> int:
    """Measure and publish; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "LAYOUT"), help=argparse.SUPPRESS)
    options = parser.parse_args([] if arguments is None else arguments)
    if options.memory_of:
        print(json.dumps(_peak_memory(*options.memory_of)))
        return 0
    seconds = {layout: _step_times(layout) for layout in LAYOUTS}
    mebibytes = {
        layout: {network: _new_process_peak_memory(network, layout) for network in NETWORKS} for layout in LAYOUTS
    }
    lines, met = _report(seconds, mebibytes)
    publish("model_step.md", lines)
    return 0 if met else 1


def _network(name: str, layout: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = PNASNet5(LARGE, dropout=0.0) if name == "ours" else timm.create_model("pnasnet5large")
    return network.to(memory_format=LAYOUTS[layout])


def _batch(layout: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(IMAGES, 3, SIDE, SIDE).to(memory_format=LAYOUTS[layout]), torch.randint(1000, (IMAGES,))


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Take one training step; return its wall time in seconds."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    return time.perf_counter() - start


def _step_times(layout: str) -> dict[str, float]:
    """Return the median seconds of each network's step; steps take turns, so noise of the machine affects both."""
    networks = {name: _network(name, layout) for name in NETWORKS}
    networks["timm"].load_state_dict(networks["ours"].state_dict())
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1e-4) for name, network in networks.items()}
    images, labels = _batch(layout)
    times: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for round_ in range(ROUNDS + 1):
        for name in NETWORKS:
            elapsed = _step(networks[name], optimizers[name], images, labels)
            if round_:  # the first round warms up caches and the allocator
                times[name].append(elapsed)
            print(f"\r{layout} round {round_} of {ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: statistics.median(values) for name, values in times.items()}


def _peak_memory(name: str, layout: str) -> float:
    """Return the MiB by which two training steps raise this process's peak resident set."""
    before = _peak_resident()
    network = _network(name, layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    for _ in range(2):
        _step(network, optimizer, *_batch(layout))
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


def _report(seconds: dict[str, dict[str, float]], mebibytes: dict[str, dict[str, float]]) -> tuple[list[str], bool]:
    """Return the lines of the page, and whether both bars are met in the faster layout of each network."""
    best = {name: min(LAYOUTS, key=lambda layout: seconds[layout][name]) for name in NETWORKS}
    time_ratio = seconds[best["ours"]]["ours"] / seconds[best["timm"]]["timm"]
    memory_ratio = mebibytes[best["ours"]]["ours"] / mebibytes[best["timm"]]["timm"]
    rows = [
        f"| {layout} | {values['ours']:.2f} s | {values['timm']:.2f} s | {values['ours'] / values['timm']:.3f} "
        f"| {memory['ours']:,.0f} MiB | {memory['timm']:,.0f} MiB | {memory['ours'] / memory['timm']:.3f} |"
        for (layout, values), memory in zip(seconds.items(), mebibytes.values(), strict=True)
    ]
    lines = [
        "# Training step of pnasnet5large",
        "",
        f"{SIDE} px, fp32, batch {IMAGES}, forward, backward and SGD; median of {ROUNDS} steps taken in turns with "
        "timm's; memory is the growth of the peak resident set of a fresh process whose malloc keeps no free blocks.",
        "",
        "    python -m benchmarks.model_step",
        "",
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}, "
        f"{processor()}, {torch.get_num_threads()} threads",
        "",
        "| layout | step, ours | step, timm | ratio | peak, ours | peak, timm | ratio |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Better layout of each ({best['ours']}, {best['timm']}): time {time_ratio:.3f} of timm's (bar {TIME_BAR}), "
        f"peak memory {memory_ratio:.3f} of timm's (bar {MEMORY_BAR}).",
    ]
    return lines, time_ratio <= TIME_BAR and memory_ratio <= MEMORY_BAR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
