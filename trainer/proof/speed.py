"""The rates at which a device multiplies matrices and copies memory, to compare with the other devices."""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from trainer.devices.device import Device
from trainer.environment.facts import read_facts
from trainer.proof.check import CheckOutcome, Context
from trainer.proof.comparison import COLD, COPY, MATMUL, SUSTAINED, WARM
from trainer.proof.device import opened
from trainer.proof.numbers import FP16, formats_of

_SHORTEST_S, _LONGEST_S = 0.2e-3, 1e-3
"""The length of a measured call: longer than a launch, and less than the time after which a busy host interrupts it."""
_TRIALS = 5
_SUSTAINED_S, _MOST_S = 0.15, 5.0
"""The device's time for the calls of one size, and the host's."""
_SIDES = tuple(128 << step for step in range(8))
_SIZES = tuple(1 << step for step in range(20, 31, 2))
"""Bytes."""
_EXPECTED = "what the other devices reach"
_HEAT_S, _EMULATED_HEAT_S = 5.0, 1.0
"""The device's time under load until a chip that is cooled badly lowers its clock; an emulated one is a CPU."""
_MOST_HEAT_S = 20.0
"""The host's time for it."""


def prove_matmul_speed(context: Context) -> CheckOutcome:
    """Measure products of square matrices in each number format, in the sizes that take about a millisecond.

    On other devices than a CPU, also repeat one of them in fp16, which is hard work for a chip, until it is warm.
    """
    runtime, device = opened(context.place)
    figures: dict[str, float] = {}
    for numbers in formats_of(runtime):
        context.mark(f"matrix products in {numbers.name}")
        products = functools.partial(_product, numbers.dtype, device)
        measured = list(_measure(_SIDES, products, runtime))
        figures |= _best_rate(
            f"{MATMUL}_{numbers.name}", "tflops", ((_operations(side), times) for side, times in measured)
        )
        if numbers is FP16 and device.type != "cpu":
            side, _ = measured[-1]
            figures |= _heat(context, side)
    return _outcome(figures, "TFLOP/s")


def _product(dtype: torch.dtype, device: torch.device, side: int) -> Callable[[], object]:
    left, right, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def _operations(side: int) -> float:
    """Return the operations of a product, in units of 10**12."""
    return 2 * side**3 / 1e12


def _heat(context: Context, side: int) -> dict[str, float]:
    """Repeat a product for some seconds; return the rates at the beginning and at the end.

    Its numbers are random, because equal ones take less power (Gregersen and others, "Input-Dependent Power Usage in
    GPUs", 2024).
    """
    runtime, device = opened(context.place)
    seconds = _EMULATED_HEAT_S if read_facts(os.environ, npu_smi_timeout_s=None).emulated else _HEAT_S
    context.mark(f"matrix products for {seconds:g} s")
    left, right = (torch.rand(side, side).to(FP16.dtype).to(device) for _ in range(2))
    out = torch.empty_like(left)
    times, total, end = list[float](), 0.0, time.monotonic() + _MOST_HEAT_S
    while total < seconds and time.monotonic() < end:
        times.append(_seconds(lambda: torch.mm(left, right, out=out), runtime))
        total += times[-1]
    count = max(1, sum(last < _SUSTAINED_S for last in itertools.accumulate(reversed(times))))
    cold, warm = (
        _best_rate(name, "tflops", [(_operations(side), part)])
        for name, part in ((COLD, times[:count]), (WARM, times[-count:]))
    )
    return cold | warm


def prove_copy_speed(context: Context) -> CheckOutcome:
    """Measure copies to the device, from it and on it."""
    runtime, device = opened(context.place)
    figures: dict[str, float] = {}
    for way in ("to_device", "from_device", "on_device"):
        context.mark(f"copies {way.replace('_', ' ')}")

        def prepare(size: int, way: str = way) -> Callable[[], object]:
            source, target = _buffers(way, size, device, pinned=runtime.pin_memory)
            return lambda: target.copy_(source, non_blocking=True)

        figures |= _best_rate(
            f"{COPY}_{way}", "gb_per_s", ((size / 1e9, times) for size, times in _measure(_SIZES, prepare, runtime))
        )
    return _outcome(figures, "GB/s")


def _buffers(way: str, size: int, device: torch.device, *, pinned: bool) -> tuple[Tensor, Tensor]:
    """Return a source and a target of a copy, of which at most one is in the host's memory."""

    def buffer(*, on_host: bool) -> Tensor:
        if on_host:
            return torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
        return torch.ones(size, dtype=torch.uint8, device=device)

    return buffer(on_host=way == "to_device"), buffer(on_host=way == "from_device")


def _measure(
    sizes: Sequence[int], prepare: Callable[[int], Callable[[], object]], runtime: Device
) -> Iterator[tuple[int, list[float]]]:
    """Yield sizes whose calls are long enough to be measured, and the times of calls, in seconds."""
    for size in sizes:
        call = prepare(size)
        _seconds(call, runtime)
        times = [_seconds(call, runtime) for _ in range(_TRIALS)]
        if min(times) < _SHORTEST_S and size != sizes[-1]:
            continue
        end = time.monotonic() + _MOST_S
        while sum(times) < _SUSTAINED_S and time.monotonic() < end:
            times.append(_seconds(call, runtime))
        yield size, times
        if min(times) > _LONGEST_S:
            return


def _seconds(call: Callable[[], object], runtime: Device) -> float:
    """Return the device's time for a call; on a CPU, which others use too, this process's time on a processor."""
    start, end = runtime.new_event(), runtime.new_event()
    if start is None:
        begin = time.process_time()
        call()
        return time.process_time() - begin
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _best_rate(name: str, unit: str, measured: Iterable[tuple[float, Sequence[float]]]) -> dict[str, float]:
    """Return the rate of the fastest call of all sizes, and the mean rate at its size.

    The fastest of sizes that take longer and shorter is hardly ever disturbed.

    Args:
        measured: For each size, the work of a call and the times of calls.
    """
    best, mean = max((work / min(times), work * len(times) / sum(times)) for work, times in measured)
    return {f"{name}_{unit}": best, f"{name}_{SUSTAINED}_{unit}": mean}


def _outcome(figures: dict[str, float], unit: str) -> CheckOutcome:
    """Return the figures, and the best rates in words."""
    suffix = "_" + unit.replace("/s", "_per_s" if unit == "GB/s" else "s").lower()
    rates = {name.removesuffix(suffix): rate for name, rate in figures.items() if SUSTAINED not in name}
    words = ", ".join(f"{name.replace('_', ' ')} {rate:.3g}" for name, rate in rates.items())
    return CheckOutcome("passed", f"{words} {unit}", _EXPECTED, figures=figures)
