"""What a training step costs on the path of an NPU, against the path of the CPU, in one process and in turns.

Two figures, both CPU time of one thread. The whole step on the emulated NPU, whose kernels are the CPU's: what the
emulation adds. And the step's host work, Python and dispatch, which on a real NPU has to keep ahead of the chip: each
operator is stopped below autograd, and gives back what it gave when the same steps were taken before, so that nothing
is computed or allocated, by either device. What the stop itself costs is in both, once per operator.
"""

import argparse
import dataclasses
import gc
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

from benchmarks.model_step import processor
from tests.npu.machine import build, environment
from trainer.data.augment import NORMALIZATIONS, device_transform
from trainer.data.loader import Batch, to_device
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.shared.config import TrainConfig
from trainer.training.steps import Training, train_steps
from trainer.worker.run import build as build_training
from trainer.worker.run import watchdog_of
from trainer.worker.task import WorkerTask

STEP_BAR, HOST_BAR = 1.3, 1.0
# Network, side, images, rounds of one step each.
SIZES = (("pnasnet5tiny", 32, 32, 20), ("pnasnet5mobile", 96, 8, 8), ("pnasnet5large", 331, 2, 4))
HOST_SIZE = ("pnasnet5large", 64, 2)
HOST_STEPS, HOST_ROUNDS = 4, 40
ARITHMETIC = ("fp32", "fp16", "O2")
CLASSES = 1000
RESULT = Path(__file__).parent / "results" / "npu_host_work.md"


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU seconds of a step on each path, and how many operators reach a device in it (0: not counted)."""

    what: str
    cpu_s: float
    npu_s: float
    cpu_operators: float = 0
    npu_operators: float = 0

    @property
    def ratio(self) -> float:
        """The NPU's path to the CPU's."""
        return self.npu_s / self.cpu_s


class Stub(TorchDispatchMode):
    """Operators that compute while they are recorded, and from then on only give back what they gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._recorded: list[tuple[Any, Callable[[tuple[Any, ...]], Any]]] = []
        self._next: int | None = None

    @property
    def operators(self) -> int:
        """How many there are."""
        return len(self._recorded)

    def rewind(self) -> None:
        """From now on nothing is computed; the same program runs once more."""
        assert self._next in (None, self.operators), "the program has not been run to its end"
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record or give back."""
        if self._next is None:
            result = func(*args, **(kwargs or {}))
            self._recorded.append((func, _again(result, args)))
            return result
        expected, given = self._recorded[self._next]
        assert func is expected, f"{func} where {expected} was recorded"
        self._next += 1
        return given(args)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and keep the result; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-npus", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args([] if arguments is None else arguments).on_npus:
        print(json.dumps([[dataclasses.asdict(cost) for cost in costs] for costs in (_steps(), _host_work())]))
        return 0
    build()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.npu_host_work", "--on-npus"],
        # torch_npu comes with torch: the autograd engine counts the devices at the first backward pass.
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    steps, host = ([Cost(**values) for values in costs] for costs in json.loads(done.stdout.splitlines()[-1]))
    report = _report(steps, host)
    print(report)
    RESULT.write_text(report + "\n", encoding="utf-8")
    return 0 if all(cost.ratio <= STEP_BAR for cost in steps) and host[0].ratio <= HOST_BAR else 1


def _steps() -> list[Cost]:
    return [_whole_step(*size) for size in SIZES]


def _whole_step(model: str, side: int, images: int, rounds: int) -> Cost:
    runs = {kind: _run(kind, "fp32", model, side, images, steps=1) for kind in ("cpu", "npu")}
    seconds = _in_turns(runs, rounds)
    return Cost(f"{model}, {side} px, {images} images", seconds["cpu"], seconds["npu"])


def _host_work() -> list[Cost]:
    """In each arithmetic of an NPU, against the CPU's own fp32."""
    stubs = {"cpu": Stub(), **{precision: Stub() for precision in ARITHMETIC}}
    runs = {}
    for name, stub in stubs.items():
        kind, precision = ("cpu", "fp32") if name == "cpu" else ("npu", name)
        run = _run(kind, precision, *HOST_SIZE, steps=HOST_STEPS)
        run()  # gradients, momentum and a first loss scale are there from the second time on
        runs[name] = _stubbed(run, stub)
    seconds = {name: value / HOST_STEPS for name, value in _in_turns(runs, HOST_ROUNDS).items()}
    counts = {name: stub.operators / HOST_STEPS for name, stub in stubs.items()}
    return [Cost(name, seconds["cpu"], seconds[name], counts["cpu"], counts[name]) for name in ARITHMETIC]


def _stubbed(run: Callable[[], None], stub: Stub) -> Callable[[], None]:
    with stub:
        run()

    def again() -> None:
        stub.rewind()
        with stub:
            run()

    return again


def _run(kind: str, precision: str, model: str, side: int, images: int, *, steps: int) -> Callable[[], None]:
    """A function that takes some training steps on the device of `kind`."""
    settings = {"device": kind, "precision": precision, "model": model, "image_size": side, "batch_size": images}
    # A scale that fits from the first step on, so that every round does the same.
    config = TrainConfig.model_validate({**settings, "lr": 1e-4, "loss_scale": 128.0, "log_interval": steps})
    task = dataclasses.replace(WorkerTask.alone(config, Path("unused")), device=kind)
    runtime, watchdog = open_device(kind), watchdog_of(task)
    device = runtime.open(0)
    training = build_training(task, config, runtime, device, weights=None, num_classes=CLASSES, watchdog=watchdog)
    plan = plan_epoch(steps * images, world_size=1, batch_size=images, accumulate=1, steps_limit=steps)
    batches = [_batch(images, side) for _ in range(steps)]
    prepare = _preparation(training)

    def take() -> None:
        on_device = to_device(iter(batches), device)
        list(train_steps(training, on_device, plan, epoch=0, first_step=0, warmup_left=0, prepare=prepare))

    return take


def _batch(images: int, side: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return Batch(pixels, labels, torch.zeros(images, dtype=torch.bool), torch.arange(images))


def _preparation(training: Training) -> Callable[[Batch], Tensor]:
    mean, std = NORMALIZATIONS[training.config.normalize]
    return lambda batch: device_transform(batch.images, batch.flips, mean=mean, std=std, channels_last=False)


def _in_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, taken in turns so that the machine's moods meet all; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # as in a worker
    for round_ in range(rounds + 1):
        # There and back: who comes after whom costs some percent.
        for name, run in list(runs.items())[:: 1 if round_ % 2 else -1]:
            began = time.process_time()
            run()
            if round_:
                seconds[name].append(time.process_time() - began)
        print(f"\rround {round_} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _again(result: Any, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Any]:
    """How to give an operator's result once more: the argument that it was, or a tensor of the same memory."""
    if isinstance(result, Tensor):
        place = next((number for number, argument in enumerate(args) if argument is result), None)
        if place is not None:
            return itemgetter(place)
        kept = result.detach()
        return lambda _args: kept.detach()
    if isinstance(result, list | tuple):
        kind, parts = type(result), [_again(part, args) for part in result]
        return lambda args: kind(part(args) for part in parts)
    return lambda _args: result


def _report(steps: list[Cost], host: list[Cost]) -> str:
    lines = [
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
        *(f"| {cost.what} | {cost.cpu_s:.3f} s | {cost.npu_s:.3f} s | {cost.ratio:.3f} |" for cost in steps),
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
            f"| {cost.what} | {cost.cpu_s * 1e3:.1f} ms | {cost.npu_s * 1e3:.1f} ms | {cost.ratio:.3f} "
            f"| {cost.cpu_operators:,.0f} | {cost.npu_operators:,.0f} |"
            for cost in host
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
