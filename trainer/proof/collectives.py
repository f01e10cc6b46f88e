"""Collectives between devices: whether their sums are right, and how fast they are.

Each device tells what it does: `WAITING` with the collective that it has entered. If one hangs, the
waiting devices are not the cause. While times are measured, it tells only what lasts.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.process_group import all_gather_object, join_process_group
from trainer.proof.advice import ADVICE
from trainer.proof.check import WAITING, CheckOutcome, CheckPlace, Context
from trainer.proof.comparison import LINK, SUSTAINED
from trainer.proof.device import opened
from trainer.proof.numbers import NumberFormat, formats_of

_STALL_S = 120.0
_SIZES = (1, 1000, 1 << 16, (1 << 20) + 3)
"""Numbers; the last size is odd, and larger than what one packet or one chunk of a ring holds."""
_ROUNDS = 3
_SEED = 37
_LATENCY_CALLS = 50
_SHORTEST_BYTES, _LONGEST_BYTES = 1 << 20, 1 << 26
_FEWEST_CALLS, _MOST_CALLS = 4, 40
_CALLS_S = 1.0
"""The time for the calls of one size, unless the fewest calls take longer."""
_LASTING_S = 1.0
"""How long a timed call must last to be told."""
_LONGEST_CALL_S = 0.05
"""Buffers grow up to this time of a call, or up to the largest size."""


@functools.cache
def _joined(place: CheckPlace) -> dist.ProcessGroup | None:
    """Join the processes of the place, at the first call; return the hosts' group.

    Raises:
        UsageError: the port is taken.
    """
    runtime, _ = opened(place)
    size = len(place.devices)
    return join_process_group(
        runtime,
        rank=place.rank,
        world_size=size,
        master_port=place.master_port,
        stall_timeout_s=_STALL_S,
        listener=place.listener,
    )


def prove_all_reduce(context: Context) -> CheckOutcome:
    """Add up whole numbers over all devices, and compare each sum with the exact one.

    Each device can compute the parts of all others, so that the difference tells whose part is missing.
    """
    runtime, device = opened(context.place)
    if len(context.place.devices) < 2:
        return CheckOutcome("impossible", "one device has nothing to add up with")
    context.mark("joining the other devices")
    _joined(context.place)
    advice = ADVICE[context.place.kind].links
    expected = "the sums of whole numbers, which are exact in any order"
    number = compared = 0
    for numbers in formats_of(runtime):
        for size in _SIZES * _ROUNDS:
            number += 1
            parts = parts_of(len(context.place.devices), size, number, numbers)
            result = parts[context.place.rank].clone().to(device)
            _reduce(context, f"all-reduce {number} ({size:,} numbers in {numbers.name})", result)
            wrong = describe_sum(result.cpu(), parts, context.place.name_of)
            if wrong:
                return CheckOutcome("failed", f"all-reduce {number} in {numbers.name}: {wrong}", expected, advice)
            compared += size
    figures = {"results": compared}
    return CheckOutcome("passed", f"{compared:,} sums of {number} all-reduces are right", expected, figures=figures)


def parts_of(ranks: int, size: int, number: int, numbers: NumberFormat) -> Tensor:
    """Return (ranks, size): each rank's part of an all-reduce, whole numbers whose sums the format holds exactly."""
    largest = max(1, 2**numbers.bits // ranks)
    generator = torch.Generator().manual_seed(_SEED + number)
    return torch.randint(-largest, largest + 1, (ranks, size), generator=generator, dtype=numbers.dtype)


def describe_sum(result: Tensor, parts: Tensor, name_of: Callable[[int], str]) -> str:
    """Return what is wrong with a sum of the parts, and whose part is missing if that explains it; empty if right."""
    wanted = parts.sum(0, dtype=torch.float64)
    difference = result.double() - wanted
    wrong = int(difference.count_nonzero())
    if not wrong:
        return ""
    missing = [name_of(rank) for rank, part in enumerate(parts) if difference.equal(-part.double())]
    first = int(difference.nonzero()[0])
    values = f"{float(result[first]):g} and not {float(wanted[first]):g}"
    words = f"{wrong:,} of {len(wanted):,} sums are wrong, the first is {values}"
    return f"the part of {' or '.join(missing)} is missing: {words}" if missing else words


def prove_link_speed(context: Context) -> CheckOutcome:
    """Measure the rate and the latency of all-reduces between two devices."""
    return _measure_all_reduces(context, LINK, "what the other pairs reach")


def prove_all_reduce_speed(context: Context) -> CheckOutcome:
    """Measure them between all devices."""
    if len(context.place.devices) < 2:
        return CheckOutcome("impossible", "one device has no other one to exchange with")
    return _measure_all_reduces(context, "all_reduce", "a figure to keep")


def _measure_all_reduces(context: Context, name: str, expected: str) -> CheckOutcome:
    _, device = opened(context.place)
    context.mark("joining the other devices")
    group = _joined(context.place)
    latency_s = min(_times(context, torch.zeros(1, device=device), _LATENCY_CALLS))
    # Of the bytes of a buffer, a ring sends 2 (n - 1) / n over each link (the "bus bandwidth" of NCCL's tests).
    ranks = len(context.place.devices)
    rates = []
    size, seconds = _SHORTEST_BYTES, 0.0
    while size <= _LONGEST_BYTES and seconds < _LONGEST_CALL_S:
        values = torch.zeros(size // 4, device=device)
        seconds = max(all_gather_object(_times(context, values, 1)[0], group))
        times = _times(context, values, min(max(_FEWEST_CALLS, int(_CALLS_S / seconds)), _MOST_CALLS))
        # The slowest device's: a collective is over when it is over everywhere.
        fastest, mean = map(max, zip(*all_gather_object((min(times), sum(times) / len(times)), group), strict=True))
        sent = size * 2 * (ranks - 1) / ranks / 1e9
        rates.append((sent / fastest, sent / mean))
        size *= 4
    best, mean = max(rates)
    figures = {
        f"{name}_gb_per_s": best,
        f"{name}_{SUSTAINED}_gb_per_s": mean,
        f"{name}_latency_us": latency_s * 1e6,
    }
    measured = f"{best:.3g} GB/s over each link, {latency_s * 1e6:.0f} us for one number"
    return CheckOutcome("passed", measured, expected, figures=figures)


def _times(context: Context, values: Tensor, calls: int) -> list[float]:
    """Return the times of all-reduces in seconds, from the host's start to the device's end; the first is left out."""
    times = []
    _reduce(context, f"an all-reduce of {values.nbytes:,} bytes", values)
    context.mark(f"timing all-reduces of {values.nbytes:,} bytes")
    with lasting_marks(context.mark) as doing:
        for number in range(1, calls + 1):
            name = f"timed all-reduce {number} of {values.nbytes:,} bytes"
            entered = f"{WAITING} {name}"
            doing(f"entering {name}")
            begin = time.monotonic()
            work = dist.all_reduce(values, async_op=True)
            doing(entered)
            _finish(work, values)
            times.append(time.monotonic() - begin)
    return times


@contextmanager
def lasting_marks(mark: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes what this process does now, and mark it if it lasts.

    A mark of each call would disturb the times that the process measures.
    """
    doing, ended = "", threading.Event()

    def begin(text: str) -> None:
        nonlocal doing
        doing = text

    def look() -> None:
        before = ""
        while not ended.wait(_LASTING_S):
            if doing == before != "":
                mark(doing)
            before = doing

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield begin
    finally:
        ended.set()
        thread.join()


def _reduce(context: Context, name: str, values: Tensor) -> None:
    """Add up the ranks' values in place; wait until the device has done so.

    A device that has not finished its earlier work does not reach the mark that it waits.
    """
    context.mark(f"entering {name}")
    float(values[0].cpu())
    work = dist.all_reduce(values, async_op=True)
    context.mark(f"{WAITING} {name}")
    _finish(work, values)


def _finish(work: dist.Work | None, values: Tensor) -> None:
    """Wait until the device has added up the values."""
    if work is not None:
        work.wait()
    float(values[0].cpu())
