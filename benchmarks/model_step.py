"""pnasnet5large at 331 px against timm's: a training step, an evaluation, and the peak memory of a step.

Time: the networks are in one process with the same weights and images, and take turns; the result is the median, of
wall time and of CPU time. Ours has the layout in memory that `--memory-format auto` chooses; timm's has both, and the
better one counts. All run in the environment of a CPU worker, whose malloc keeps freed memory; its gain is counted
separately, in page faults. Memory: each network runs in a new process; the result is the growth of its peak
resident set over the interpreter and its libraries.

The floor of a ratio is the time of only our convolutions against timm's whole pass: all else could only become free.
The lower floor is the time of the same multiply-adds at the rate of one large convolution of the library.
"""

import json
import os
import resource
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
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.devices.cpu import CpuDevice
from trainer.devices.runtime_env import KEEP_FREED_MEMORY
from trainer.model.folding import PackedConv2d, folded
from trainer.model.pnasnet import LARGE, PNASNet5

SIDE, IMAGES, MANY_IMAGES = 331, 2, 16
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
    training_steps = _training_steps()
    steps = in_turns("step", training_steps, rounds)
    evaluations = in_turns("evaluation", _evaluations(IMAGES), rounds)
    recomputing, ours = (
        Series(name, [seconds.wall for seconds in steps[name, OURS]]) for name in ("ours, recomputing", "ours")
    )
    return [
        *time_figures("training step", steps, STEP_BAR),
        *time_figures(f"evaluation of {IMAGES} images", evaluations, EVALUATION_BAR),
        Figure("step with `--activation-checkpointing`, wall time", "s", recomputing, ours, Bar(RECOMPUTING_BAR)),
        *(() if quick else _memory_figures()),
        *(() if quick else _other_figures(training_steps)),
        *(() if quick else _floor_figures(training_steps, steps, evaluations)),
    ]


def time_figures(what: str, times: dict[tuple[str, str], list[Seconds]], bar: float) -> Iterator[Figure]:
    """Yield the figures against each layout of timm's; the bar holds against the faster one."""
    peers = sorted((key for key in times if key[0] == "timm"), key=lambda key: _median_wall(times[key]))
    for peer in peers:
        for index, clock in enumerate(("wall", "CPU")):
            ours, theirs = (
                Series(", ".join(key), [seconds[index] for seconds in times[key]]) for key in (("ours", OURS), peer)
            )
            yield Figure(f"{what}, {clock} time", "s", ours, theirs, Bar(bar) if peer == peers[0] else None)


def _other_figures(training_steps: dict[tuple[str, str], Callable[[], None]]) -> Iterator[Figure]:
    """Yield the times of a larger batch, and of a process that has one thread, as each of several ranks has."""
    name = f"evaluation of {MANY_IMAGES} images"
    yield from time_figures(name, in_turns(name, _evaluations(MANY_IMAGES), QUICK_ROUNDS), EVALUATION_BAR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {key: training_steps[key] for key in (("ours", OURS), ("timm", OURS))}
    yield from time_figures("training step by one thread", in_turns("one thread", steps, QUICK_ROUNDS), STEP_BAR)
    name = f"evaluation of {IMAGES} images by one thread"
    yield from time_figures(name, in_turns(name, _evaluations(IMAGES), QUICK_ROUNDS), EVALUATION_BAR)
    torch.set_num_threads(threads)


def _floor_figures(
    training_steps: dict[tuple[str, str], Callable[[], None]],
    steps: dict[tuple[str, str], list[Seconds]],
    evaluations: dict[tuple[str, str], list[Seconds]],
) -> Iterator[Figure]:
    evaluating, rates = f"evaluation of {IMAGES} images", _large_rates(ROUNDS)
    operations = _operations()
    yield _floor("training step", training_steps, steps)
    yield _floor_at_peak(
        "training step", 3 * operations, rates, steps
    )  # forward, and the gradients of maps and weights
    yield _floor(evaluating, _evaluations(IMAGES), evaluations)
    yield _floor_at_peak(evaluating, operations, rates, evaluations)
    yield _rates(operations, rates)
    yield _page_faults()


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


def make_networks() -> dict[tuple[str, str], nn.Module]:
    """Return ours and timm's in each layout, with the same weights."""
    networks = {("ours", OURS): _network("ours", OURS), **{("timm", name): _network("timm", name) for name in LAYOUTS}}
    state = networks["ours", OURS].state_dict()
    for network in networks.values():
        network.load_state_dict(state)
    return networks


def _batch(layout: str, count: int = IMAGES) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, 3, SIDE, SIDE).to(memory_format=LAYOUTS[layout]), torch.randint(1000, (count,))


def training_step(network: nn.Module, layout: str) -> Callable[[], None]:
    """Return a step of SGD on images in a layout."""
    images, labels = _batch(layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def _training_steps() -> dict[tuple[str, str], Callable[[], None]]:
    networks = make_networks()
    networks["ours, recomputing", OURS] = _network("ours, recomputing", OURS)
    return {key: training_step(network, key[1]) for key, network in networks.items()}


def _evaluations(count: int) -> dict[tuple[str, str], Callable[[], None]]:
    """Return evaluations of `count` images: ours with folded batch norms, as a run evaluates."""
    networks = make_networks()
    ours = networks["ours", OURS]
    assert isinstance(ours, PNASNet5)
    networks["ours", OURS] = folded(ours)

    def evaluation(network: nn.Module, layout: str) -> Callable[[], None]:
        network.eval()
        images, _ = _batch(layout, count)

        @torch.no_grad()
        def evaluate() -> None:
            network(images)

        return evaluate

    return {key: evaluation(network, key[1]) for key, network in networks.items()}


def in_turns(
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


CONVOLUTIONS = (
    "aten::convolution",
    "aten::convolution_backward",
    "mkldnn::_convolution_pointwise",
    "mkldnn::_linear_pointwise",  # of wide 1x1 weights
)
"""The operators in torch's profile that compute convolutions and their gradients."""


def _floor(
    what: str,
    steps: dict[tuple[str, str], Callable[[], None]],
    times: dict[tuple[str, str], list[Seconds]],
) -> Figure:
    """Return the time of only our convolutions, from a profile, against timm's whole pass."""
    step, peer = steps["ours", OURS], _best(times)
    samples = []
    for _ in times[peer]:
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        events = profile.key_averages()
        samples.append(sum(event.cpu_time_total for event in events if event.key in CONVOLUTIONS) / 1e6)
    ours, theirs = Series("our convolutions", samples), Series(", ".join(peer), [time.wall for time in times[peer]])
    return Figure(f"{what}, its floor: only convolutions, wall time", "s", ours, theirs)


def _floor_at_peak(
    what: str, operations: float, rates: list[float], times: dict[tuple[str, str], list[Seconds]]
) -> Figure:
    """Return the time of all multiply-adds at the rate of one large convolution, against timm's whole pass."""
    peer = _best(times)
    ours = Series("at a large convolution's rate", [operations / rate / 1e9 for rate in rates])
    theirs = Series(", ".join(peer), [time.wall for time in times[peer]])
    return Figure(f"{what}, its floor: at the peak of the library, wall time", "s", ours, theirs)


def _rates(operations: float, rates: list[float]) -> Figure:
    """Return the rate of the convolutions of an evaluation against one large convolution of the same library."""
    floor = _floor("", _evaluations(IMAGES), {("timm", OURS): [Seconds(1, 1)] * len(rates)})
    ours = Series("ours", [operations / seconds / 1e9 for seconds in floor.ours.samples])
    return Figure("rate of the convolutions of an evaluation", "GFLOP/s", ours, Series("a large one", rates))


def _operations() -> float:
    """Return the operations of an evaluation, two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        _evaluations(IMAGES)["timm", OURS]()
    return float(counter.get_total_flops())


def _large_rates(rounds: int) -> list[float]:
    """Return the GFLOP/s of one large 1x1 convolution whose weight is in oneDNN's order."""
    large = PackedConv2d(nn.Conv2d(1080, 1080, 1).requires_grad_(False))
    maps = torch.randn(IMAGES, 1080, 84, 84).to(memory_format=torch.channels_last)
    operations = 2 * maps.numel() * 1080
    large(maps)
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        large(maps)
        rates.append(operations / (time.perf_counter() - began) / 1e9)
    return rates


def _page_faults() -> Figure:
    """Return the page faults of a training step in a CPU worker's environment and without it."""
    of_default = {name: value for name, value in os.environ.items() if name not in KEEP_FREED_MEMORY}
    with_it, without = (
        Series(name, [max(1.0, _in_new_process("faults-of", "ours", OURS, environ=environ))])
        for name, environ in (("kept memory", dict(os.environ)), ("glibc's defaults", of_default))
    )
    return Figure("page faults of a training step", "", with_it, without)


def _faults(name: str, layout: str) -> float:
    """Return the page faults of the fourth training step of this process."""
    step = training_step(_network(name, layout), layout)
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _peak_memory(name: str, layout: str) -> float:
    """Return the MiB by which two training steps raise this process's peak resident set."""
    before = _peak_resident()
    step = training_step(_network(name, layout), layout)
    for _ in range(2):
        step()
    return (_peak_resident() - before) / 1024


def _peak_resident() -> int:
    """Return the peak resident set in KiB; the value of getrusage would start at the parent's size."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _new_process_peak_memory(name: str, layout: str) -> float:
    # malloc returns large blocks to the system at once, so that the peak counts only memory in use.
    of_malloc = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return _in_new_process("memory-of", name, layout, environ=os.environ | of_malloc)


def _in_new_process(what: str, name: str, layout: str, *, environ: dict[str, str]) -> float:
    command = [sys.executable, "-m", "benchmarks.model_step", what, name, layout]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environ).stdout
    return float(json.loads(output))


def _best(times: dict[tuple[str, str], list[Seconds]]) -> tuple[str, str]:
    """Return the faster one of timm's layouts."""
    return min((key for key in times if key[0] == "timm"), key=lambda key: _median_wall(times[key]))


def _median_wall(times: list[Seconds]) -> float:
    return statistics.median(seconds.wall for seconds in times)


def run_as_a_worker(benchmark: Benchmark) -> int:
    """Run a benchmark in the environment of a CPU worker: malloc reads it when a process starts."""
    if not KEEP_FREED_MEMORY.keys() <= os.environ.keys():
        again = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | KEEP_FREED_MEMORY)
    return run(benchmark)


BENCHMARK = Benchmark(
    name="model_step",
    title="Training step and evaluation of pnasnet5large",
    method=f"{SIDE} px, fp32, {IMAGES} images; a step is forward, backward and fused SGD with momentum, after "
    f"{WARM_UP} to warm up. All have a CPU worker's environment, whose malloc keeps freed memory. Ours evaluates with "
    "folded batch norms. A floor is the time of only our convolutions, or of their multiply-adds at the rate of one "
    "large convolution, against timm's whole pass. Memory is the "
    "growth of the peak resident set of a new process whose malloc keeps no free blocks.",
    measure=measure,
    packages=("torch", "timm"),
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory-of"]:  # in a new process
        print(json.dumps(_peak_memory(*sys.argv[2:])))
    elif sys.argv[1:2] == ["faults-of"]:
        print(json.dumps(_faults(*sys.argv[2:])))
    else:
        sys.exit(run_as_a_worker(BENCHMARK))
