"""The cost of a training step on the path of an NPU, against the path of the CPU, in one process and in turns.

There are two figures, both CPU time of one thread. The first is the whole step on the emulated NPU, whose kernels run
on the CPU: it shows what the emulation adds. The second is the host work of the step, Python and dispatch, which must
keep ahead of the chip on a real NPU. To measure it, each operator is stopped below autograd and returns the result that
it had when the same steps ran before, so that neither device computes or allocates. Both paths pay for the stop, once
per operator.
"""

import argparse
import dataclasses
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import processor, publish
from tests.npu.machine import build, environment
from trainer.data.loader import ImageBatch, to_device
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.shared.config import TrainConfig
from trainer.training.comparison import StateComparison
from trainer.training.steps import Training, train_steps
from trainer.training.time_left import RunPace, Stopwatch, Work
from trainer.training.time_split import COMPUTE, RankTimes, StepClock
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

STEP_BAR, HOST_BAR = 1.3, 1.0
COMPARISON_BAR = 0.01
"""Largest share of the host work of training that comparing the ranks may take, at the default interval."""
CAPTURE_BAR = 0.10
"""Largest part of an eager step's host work that a captured step may cost."""
CLOCK_BAR = 0.01
"""Largest share of the host work of a step that taking its times may take."""
# Network, side, images, rounds of one step each.
SIZES = (("pnasnet5tiny", 32, 32, 20), ("pnasnet5mobile", 96, 8, 8), ("pnasnet5large", 331, 2, 4))
HOST_SIZE = ("pnasnet5large", 64, 2)
HOST_STEPS, HOST_ROUNDS = 4, 40
ARITHMETIC = ("fp32", "fp16", "O2")
CLASSES = 1000
PEERS = 8


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU seconds of a step on each path, and the number of operators that reach a device in it (0: not counted)."""

    name: str
    cpu_s: float
    npu_s: float
    cpu_operators: float = 0
    npu_operators: float = 0

    @property
    def ratio(self) -> float:
        """The time of the NPU's path divided by the time of the CPU's path."""
        return self.npu_s / self.cpu_s


@dataclasses.dataclass(frozen=True)
class ComparisonCost:
    """CPU seconds and operators of one hash of a rank's state, and of one step, both on the path of an NPU."""

    name: str
    hash_s: float
    step_s: float
    hash_operators: float
    step_operators: float

    @property
    def share(self) -> float:
        """The share of the host work of training."""
        return self.hash_s / (self.step_s * TrainConfig().compare_every)


@dataclasses.dataclass(frozen=True)
class ClockCost:
    """CPU seconds in which a rank of several takes the times of one step, and of one step, on the path of an NPU."""

    name: str
    clock_s: float
    step_s: float

    @property
    def share(self) -> float:
        """The share of the host work of the step."""
        return self.clock_s / self.step_s


@dataclasses.dataclass(frozen=True)
class CaptureCost:
    """CPU seconds of the host in an eager and in a captured step, and the operators that it starts one by one."""

    name: str
    eager_s: float
    captured_s: float
    eager_operators: float
    captured_operators: float

    @property
    def ratio(self) -> float:
        """The captured step's time divided by the eager step's."""
        return self.captured_s / self.eager_s


class RecordedOperators(TorchDispatchMode):
    """Records the results of operators; after `rewind`, operators return these results and compute nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._recorded: list[tuple[Any, Callable[[tuple[Any, ...]], Any]]] = []
        self._next: int | None = None

    @property
    def operators(self) -> int:
        """The number of recorded operators."""
        return len(self._recorded)

    def rewind(self) -> None:
        """Begin again with the first recorded result; the same program must run again."""
        assert self._next in (None, self.operators), "the program has not been run to its end"
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record the operator's result, or return the recorded one."""
        if self._next is None:
            result = func(*args, **(kwargs or {}))
            self._recorded.append((func, _reproduction(result, args)))
            return result
        expected, reproduce = self._recorded[self._next]
        assert func is expected, f"{func} where {expected} was recorded"
        self._next += 1
        return reproduce(args)


def main(arguments: list[str] | None = None) -> int:
    """Measure and publish; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-npus", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args([] if arguments is None else arguments).on_npus:
        tables = (_steps(), _host_work(), _captures(), _comparisons(), _clocks())
        print(json.dumps([[dataclasses.asdict(cost) for cost in costs] for costs in tables]))
        return 0
    build()
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.npu_host_work", "--on-npus"],
        # A new process, so that torch_npu is loaded with torch: autograd counts the devices at the first backward pass.
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *tables, captured, compared, clocked = json.loads(result.stdout.splitlines()[-1])
    steps, host = ([Cost(**values) for values in costs] for costs in tables)
    captures = [CaptureCost(**values) for values in captured]
    comparisons, clocks = [ComparisonCost(**values) for values in compared], [ClockCost(**one) for one in clocked]
    publish("npu_host_work.md", _report(steps, host, captures, comparisons, clocks))
    good = all(cost.ratio <= STEP_BAR for cost in steps) and host[0].ratio <= HOST_BAR
    good = good and all(cost.ratio <= CAPTURE_BAR for cost in captures)
    good = good and all(cost.share <= COMPARISON_BAR for cost in comparisons)
    return 0 if good and all(cost.share <= CLOCK_BAR for cost in clocks) else 1


def _steps() -> list[Cost]:
    return [_whole_step(*size) for size in SIZES]


def _whole_step(model: str, side: int, images: int, rounds: int) -> Cost:
    runs = {kind: _run(kind, "fp32", model, side, images, steps=1) for kind in ("cpu", "npu")}
    seconds = _in_turns(runs, rounds)
    return Cost(f"{model}, {side} px, {images} images", seconds["cpu"], seconds["npu"])


def _host_work() -> list[Cost]:
    """Measure the host work in each arithmetic of an NPU, against fp32 on the CPU."""
    recordings = {"cpu": RecordedOperators(), **{precision: RecordedOperators() for precision in ARITHMETIC}}
    runs = {}
    for name, recording in recordings.items():
        kind, precision = ("cpu", "fp32") if name == "cpu" else ("npu", name)
        run = _run(kind, precision, *HOST_SIZE, steps=HOST_STEPS)
        run()  # from the second run on, gradients, momentum and a loss scale exist
        runs[name] = _without_kernels(run, recording)
    seconds = {name: value / HOST_STEPS for name, value in _in_turns(runs, HOST_ROUNDS).items()}
    counts = {name: recording.operators / HOST_STEPS for name, recording in recordings.items()}
    return [Cost(name, seconds["cpu"], seconds[name], counts["cpu"], counts[name]) for name in ARITHMETIC]


def _captures() -> list[CaptureCost]:
    """Measure captured steps against eager ones, with an average of the weights; a replay computes nothing."""
    # Only a process on emulated NPUs has it.
    emulation: Any = importlib.import_module("torch_npu._emulation").core
    costs = []
    for precision in ARITHMETIC:
        recordings = {graph: RecordedOperators() for graph in ("off", "on")}
        runs = {}
        for graph, recording in recordings.items():
            steps = _training_steps("npu", precision, *HOST_SIZE, steps=1, ema=0.999, graph=graph)
            emulation.compute_in_replays(True)
            for _ in range(2):  # the second step is captured
                steps.take()
            emulation.compute_in_replays(False)
            runs[graph] = _without_kernels(steps.take, recording)
        seconds = _in_turns(runs, HOST_ROUNDS)
        operators = (recordings[graph].operators for graph in ("off", "on"))
        costs.append(CaptureCost(precision, seconds["off"], seconds["on"], *operators))
    return costs


def _comparisons() -> list[ComparisonCost]:
    """Measure one hash against one step, in each arithmetic of an NPU and with an average of the weights."""
    costs = []
    for precision in ARITHMETIC:
        steps = _training_steps("npu", precision, *HOST_SIZE, steps=1, ema=0.999)
        steps.take()

        def take_hash(training: Training = steps.training) -> None:
            comparison = StateComparison(
                training.network,
                training.optimizer,
                training.ema,
                training.statistics,
                every=1,
                rank=0,
                world_size=PEERS,
            )
            comparison.after_step(epoch=0, step=1)

        take_hash()  # the first one makes the factors
        recordings = {"hash": RecordedOperators(), "step": RecordedOperators()}
        runs = {
            "hash": _without_kernels(take_hash, recordings["hash"]),
            "step": _without_kernels(steps.take, recordings["step"]),
        }
        seconds = _in_turns(runs, HOST_ROUNDS)
        operators = (recordings["hash"].operators, recordings["step"].operators)
        costs.append(ComparisonCost(precision, seconds["hash"], seconds["step"], *operators))
    return costs


def _clocks() -> list[ClockCost]:
    """Measure the marks of the steps between two log lines, their split and the forecast, against these steps."""
    interval = TrainConfig().log_interval
    steps = _training_steps("npu", "fp32", *HOST_SIZE, steps=1)
    steps.take()
    recording = RecordedOperators()
    clock, stopwatch, pace = StepClock(open_device("npu")), Stopwatch(RunPace()), RunPace()
    for _ in range(100):
        pace.add_steps(interval, 1.0)

    def take_times() -> None:
        for _ in range(interval):
            # As `train_steps` does on a rank of several, with a pass in one part.
            for part in ("host", "data", COMPUTE, "peers", COMPUTE, "host", "peers"):
                clock.mark(part)
        clock.mark("peers")
        clock.end_window()
        times = RankTimes.of_sums([1 + round(1e6 * value) for value in clock.take_unsent()] * PEERS)
        stopwatch.add_steps(interval, 1.0)
        pace.time_left(Work(10, 1, 0), Work(1000, 9, 9), images_per_step=256, images=50_000)
        assert RankTimes() + times == times
        assert times.limits

    runs = {"clock": take_times, "step": _without_kernels(steps.take, recording)}
    seconds = _in_turns(runs, HOST_ROUNDS)
    return [ClockCost("fp32", seconds["clock"] / interval, seconds["step"])]


def _without_kernels(run: Callable[[], None], recording: RecordedOperators) -> Callable[[], None]:
    with recording:
        run()

    def run_from_recording() -> None:
        recording.rewind()
        with recording:
            run()

    return run_from_recording


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The parts of a run, and a function that takes steps with them."""

    training: Training
    take: Callable[[], None]


def _run(kind: str, precision: str, model: str, side: int, images: int, *, steps: int) -> Callable[[], None]:
    """Return a function that takes `steps` training steps on the device of `kind`."""
    return _training_steps(kind, precision, model, side, images, steps=steps).take


def _training_steps(
    kind: str, precision: str, model: str, side: int, images: int, *, steps: int, ema: float = 0.0, graph: str = "off"
) -> _Steps:
    settings = {"device": kind, "precision": precision, "model": model, "image_size": side, "batch_size": images}
    settings["memory_format"] = "nchw"  # of an NPU, so that both devices run the same operators
    # The loss scale is right from the first step on, so that every round does the same work.
    config = TrainConfig.model_validate(
        {**settings, "lr": 1e-4, "loss_scale": 128.0, "ema": ema, "graph": graph, "log_interval": steps}
    )
    task = dataclasses.replace(WorkerTask(config, Path("unused")), device=kind)
    runtime, watchdog = open_device(kind), make_watchdog(task)
    device = runtime.open(0)
    training = build_training(task, config, runtime, device, weights=None, num_classes=CLASSES, watchdog=watchdog)
    plan = plan_epoch(steps * images, world_size=1, batch_size=images, accumulate=1, steps_limit=steps)
    batches = [_batch(images, side) for _ in range(steps)]

    def take_steps() -> None:
        on_device = to_device(iter(batches), device)
        list(train_steps(training, on_device, plan, epoch=0, first_step=0, warmup_left=0))

    return _Steps(training, take_steps)


def _batch(images: int, side: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return ImageBatch(pixels, labels, torch.zeros(images, dtype=torch.bool), torch.arange(images))


def _in_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each run; runs take turns, so noise affects all. The first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # as in a worker
    for round_ in range(rounds + 1):
        # Every other round is in reverse order, because the order changes the time by some percent.
        for name, run in list(runs.items())[:: 1 if round_ % 2 else -1]:
            began = time.process_time()
            run()
            if round_:
                seconds[name].append(time.process_time() - began)
        print(f"\rround {round_} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _reproduction(result: Any, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Any]:
    """Return a function that gives an operator's result again: the same argument, or a tensor of the same memory."""
    if isinstance(result, Tensor):
        position = next((number for number, argument in enumerate(args) if argument is result), None)
        if position is not None:
            return itemgetter(position)
        recorded = result.detach()
        return lambda _args: recorded.detach()
    if isinstance(result, list | tuple):
        kind, parts = type(result), [_reproduction(part, args) for part in result]
        return lambda args: kind(part(args) for part in parts)
    return lambda _args: result


def _report(
    steps: list[Cost],
    host: list[Cost],
    captures: list[CaptureCost],
    comparisons: list[ComparisonCost],
    clocks: list[ClockCost],
) -> list[str]:
    return [
        "# A training step on the path of an NPU, against the CPU's",
        "",
        "CPU time of one thread, median of steps taken in turns in one process; batches are copied to the device "
        "within the step, as in a run. All in fp32 if nothing else is said.",
        "",
        "    python -m benchmarks.npu_host_work",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {processor()}",
        "",
        f"## The whole step, on the emulated NPU (bar {STEP_BAR})",
        "",
        "| step | CPU | emulated NPU | ratio |",
        "|---|---|---|---|",
        *(f"| {cost.name} | {cost.cpu_s:.3f} s | {cost.npu_s:.3f} s | {cost.ratio:.3f} |" for cost in steps),
        "",
        f"## Host work: Python and dispatch, no kernel runs (bar {HOST_BAR} in fp32)",
        "",
        f"{HOST_SIZE[0]}, {HOST_SIZE[2]} images of {HOST_SIZE[1]} px, which change nothing here. Each operator is "
        "stopped below autograd and gives back what it gave when the same steps were recorded; the stop costs the "
        "same on both paths. The CPU's path is fp32 throughout.",
        "",
        "| arithmetic of the NPU | CPU | NPU | ratio | operators, CPU | operators, NPU |",
        "|---|---|---|---|---|---|",
        *(
            f"| {cost.name} | {cost.cpu_s * 1e3:.1f} ms | {cost.npu_s * 1e3:.1f} ms | {cost.ratio:.3f} "
            f"| {cost.cpu_operators:,.0f} | {cost.npu_operators:,.0f} |"
            for cost in host
        ),
        "",
        f"## Host work of a captured step, of an eager step's (bar {CAPTURE_BAR})",
        "",
        "The same, with an average of the weights. Copying the images, their flips and normalisation, the draws and "
        "the figures of the step stay outside the graphs, of which there are three. A replay costs the host one call "
        "here; what it costs torch_npu is not known.",
        "",
        "| arithmetic of the NPU | eager | captured | ratio | operators, eager | operators, captured |",
        "|---|---|---|---|---|---|",
        *(
            f"| {cost.name} | {cost.eager_s * 1e3:.1f} ms | {cost.captured_s * 1e3:.2f} ms | {cost.ratio:.3f} "
            f"| {cost.eager_operators:,.0f} | {cost.captured_operators:,.0f} |"
            for cost in captures
        ),
        "",
        f"## Comparison of the ranks' states, every {TrainConfig().compare_every} steps (bar {COMPARISON_BAR:.0%})",
        "",
        "The same, for one hash of weights, master weights, momentum and average of a rank, on the path of an NPU. The "
        "hash travels with a reduction that there is anyway.",
        "",
        "| arithmetic of the NPU | one hash | one step | share of the host work | operators, hash | operators, step |",
        "|---|---|---|---|---|---|",
        *(
            f"| {cost.name} | {cost.hash_s * 1e3:.1f} ms | {cost.step_s * 1e3:.1f} ms | {cost.share:.2%} "
            f"| {cost.hash_operators:,.0f} | {cost.step_operators:,.0f} |"
            for cost in comparisons
        ),
        "",
        f"## The times of a step, of {PEERS} ranks (bar {CLOCK_BAR:.0%})",
        "",
        "Marks in the emulated device's queue, their split at a log line, the forecast of the time left and the search "
        f"for the slowest rank, divided by the {TrainConfig().log_interval} steps of the log line.",
        "",
        "| arithmetic of the NPU | times of a step | one step | share of the host work |",
        "|---|---|---|---|",
        *(
            f"| {cost.name} | {cost.clock_s * 1e6:.0f} us | {cost.step_s * 1e3:.1f} ms | {cost.share:.2%} |"
            for cost in clocks
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
