"""The cost of a training step on the path of an NPU, against the path of the CPU, in one process and in turns.

There are two figures, both CPU time of one thread. The first is the whole step on the emulated NPU, whose kernels run
on the CPU: it shows what the emulation adds. The second is the host work of the step, Python and dispatch, which must
keep ahead of the chip on a real NPU. To measure it, each operator is stopped below autograd and returns the result that
it had when the same steps ran before, so that neither device computes or allocates. Both paths pay for the stop, once
per operator.
"""

import dataclasses
import gc
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import peers, report
from benchmarks.report import Bar, Benchmark, Figure, Series
from tests.npu.machine import environment
from trainer.data.loader import ImageBatch, to_device
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.model import onednn
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
HOST_STEPS, HOST_ROUNDS, QUICK_HOST_ROUNDS = 4, 30, 4
ARITHMETIC = ("fp32", "fp16", "O2")
CLASSES = 1000
PEERS = 8


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


def measure(quick: bool) -> list[Figure]:
    """Return the figures, from a process on emulated NPUs.

    Raises:
        NotMeasuredError: there is no compiler for the emulated NPU.
    """
    peers.need_emulated_npus()
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.npu_host_work", "on-npus", *["--quick"] * quick],
        # A new process, so that torch_npu is loaded with torch: autograd counts the devices at the first backward pass.
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return _FIGURES.validate_json(result.stdout.splitlines()[-1])


_FIGURES = TypeAdapter(list[Figure])


def _on_npus(quick: bool) -> list[Figure]:
    rounds = QUICK_HOST_ROUNDS if quick else HOST_ROUNDS
    # The emulation has torch's plain kernels; the CPU's step takes the same here, so that only the paths differ.
    onednn.CAPABILITY = ""
    return [
        *(_whole_step(*size) for size in (SIZES[:1] if quick else SIZES)),
        *_host_work(rounds),
        *_captures(rounds),
        *(() if quick else (*_comparisons(rounds), _clocks(rounds))),
    ]


def _whole_step(model: str, side: int, images: int, rounds: int) -> Figure:
    runs = {kind: _run(kind, "fp32", model, side, images, steps=1) for kind in ("cpu", "npu")}
    seconds = _in_turns(runs, rounds)
    ours, peer = Series("emulated NPU", seconds["npu"]), Series("CPU", seconds["cpu"])
    return Figure(f"whole step, {model}, {side} px, {images} images", "s", ours, peer, Bar(STEP_BAR))


def _host_work(rounds: int) -> Iterator[Figure]:
    """Measure the host work in each arithmetic of an NPU, against fp32 on the CPU."""
    recordings = {"cpu": RecordedOperators(), **{precision: RecordedOperators() for precision in ARITHMETIC}}
    runs = {}
    for name, recording in recordings.items():
        kind, precision = ("cpu", "fp32") if name == "cpu" else ("npu", name)
        run = _run(kind, precision, *HOST_SIZE, steps=HOST_STEPS)
        run()  # from the second run on, gradients, momentum and a loss scale exist
        runs[name] = _without_kernels(run, recording)
    seconds = _in_turns(runs, rounds)
    for name in ARITHMETIC:
        ours, peer = (
            _milliseconds(label, seconds[key], HOST_STEPS) for label, key in (("NPU", name), ("CPU, fp32", "cpu"))
        )
        yield Figure(f"host work, {name}", "ms", ours, peer, Bar(HOST_BAR) if name == "fp32" else None)
        ours, peer = (
            Series(label, [recordings[key].operators / HOST_STEPS])
            for label, key in ((f"NPU, {name}", name), ("CPU, fp32", "cpu"))
        )
        yield Figure(f"operators, {name}", "", ours, peer)


def _milliseconds(name: str, seconds: Sequence[float], divisor: float = 1) -> Series:
    return Series(name, [1000 * value / divisor for value in seconds])


def _captures(rounds: int) -> Iterator[Figure]:
    """Measure captured steps against eager ones, with an average of the weights; a replay computes nothing."""
    # Only a process on emulated NPUs has it.
    emulation: Any = importlib.import_module("torch_npu._emulation").core
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
        seconds = _in_turns(runs, rounds)
        ours, peer = _milliseconds("captured", seconds["on"]), _milliseconds("eager", seconds["off"])
        yield Figure(f"host work of a captured step, {precision}", "ms", ours, peer, Bar(CAPTURE_BAR))
        captured, eager = (
            Series(name, [recordings[graph].operators]) for name, graph in (("captured", "on"), ("eager", "off"))
        )
        yield Figure(f"operators of a captured step, {precision}", "", captured, eager)


def _comparisons(rounds: int) -> Iterator[Figure]:
    """Measure one hash against the steps between two, with an average of the weights."""
    every = TrainConfig().compare_every
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
        seconds = _in_turns(runs, rounds)
        ours = _milliseconds("one hash", seconds["hash"])
        peer = _milliseconds(f"the {every} steps between two", seconds["step"], 1 / every)
        yield Figure(f"comparison of the ranks' states, {precision}", "ms", ours, peer, Bar(COMPARISON_BAR))


def _clocks(rounds: int) -> Figure:
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
    seconds = _in_turns(runs, rounds)
    ours, peer = _milliseconds("its times", seconds["clock"], interval), _milliseconds("the step", seconds["step"])
    return Figure(f"the times of a step, of {PEERS} ranks", "ms", ours, peer, Bar(CLOCK_BAR))


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
    return ImageBatch(pixels, labels, torch.arange(images))


def _in_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each run; runs take turns, so noise affects all. The first round warms up."""
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
    return seconds


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


BENCHMARK = Benchmark(
    name="npu_host_work",
    title="A training step on the path of an NPU",
    method="CPU time of one thread; batches are copied to the device within the step, as in a run. The whole "
    "steps run on the emulated NPU, in fp32, and on a CPU with the same kernels. For the host work, Python and "
    f"dispatch, no kernel runs: {HOST_SIZE[0]}, "
    f"{HOST_SIZE[2]} images of {HOST_SIZE[1]} px, which change nothing here. Each operator is stopped below autograd "
    "and gives back what it gave when the same steps were recorded; the stop costs the same on both paths. From the "
    "captured steps on there is an average of the weights. Copying the images, their normalisation, the "
    "draws and the figures of the step stay outside the graphs, of which there are three. A replay costs the host "
    "one call here; what it costs torch_npu is not known. The hash of a rank's state travels with a reduction that "
    "there is anyway. The times of a step are marks in the device's queue, their split at a log line, the forecast "
    "of the time left and the search for the slowest rank.",
    measure=measure,
    packages=("torch",),
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["on-npus"]:
        sys.stdout.write(_FIGURES.dump_json(_on_npus("--quick" in sys.argv)).decode() + "\n")
    else:
        sys.exit(report.run(BENCHMARK))
