"""Comparisons of the results of several devices: one is slow, or another model, or one link is slow.

Pure functions from results to results. They import no torch.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.proof.advice import advice_for
from trainer.proof.check import Result

MATMUL, COPY, LINK = "matmul", "copy", "link"
"""The first words of figures that are compared."""
SUSTAINED = "sustained"
"""In the name of a mean rate, which counts what interrupts a device, and shows one that lowers its clock under load."""
COLD, WARM = f"{MATMUL}_cold", f"{MATMUL}_warm"
"""The first words of rates of one product, before and after some seconds of it."""
MEMORY = "memory_mib"
_RATES = ("_tflops", "_gb_per_s")
SLOWEST_LINK_GB_PER_S = 0.05
"""The rate below which the only link is slow, in GB/s: half of TCP over 1 Gbit/s, far below PCIe."""
_SLOW = {MATMUL: 0.75, COPY: 0.5, LINK: 0.5}
"""The part of the median of the others below which a rate is slow.

Equal devices differ by a few per cent; a device that lowers its clock or a link that has lost lanes, by a quarter or
more.
"""
_SUSTAINED_SLOW = {MATMUL: 0.4, COPY: 0.25}
"""The same for mean rates, by the device's own time; a mean over a link is the host's time, which tells nothing."""
_LEAST_STEADY = 0.6
"""The part of its best rate below which a device's mean excuses no lower rate."""
_LEAST_KEPT = 0.6
"""Far below what a chip loses at its limit of power; not measured on an NPU."""
_AS_SLOW = 4.0
"""How many times faster another pair of a device can be, and still be as slow as this one."""
_SAME_MEMORY = 0.02
"""The part by which the memory of equal devices differs, which a driver or bad pages take."""


@dataclass(frozen=True)
class SlowRate:
    """A rate that is far below what it is compared with."""

    part: float
    """Of the median of the others, or of the lowest rate that passes."""
    words: str


def best_rates(first: Result, second: Result) -> Result:
    """Return the first result of a place with the better of both results' rates; one that has not passed stands."""
    for result in (first, second):
        if result.outcome.verdict != "passed":
            return result
    figures = dict(first.outcome.figures)
    for name, value in second.outcome.figures.items():
        if name.endswith(_RATES):
            figures[name] = max(value, figures.get(name, value))
    return replace(first, outcome=replace(first.outcome, figures=figures))


def compare_rates(results: Sequence[Result]) -> list[Result]:
    """Return the results of one check on several devices, as failed where a rate is far below the others'."""
    return [
        _failed(
            result,
            f"{slow.words}: {result.place} is slow",
            f"at least {_SLOW[MATMUL]:.0%} of the median of the others for products, {_SLOW[COPY]:.0%} for copies, and "
            f"{_LEAST_KEPT:.0%} of the rate from before when it is warm",
            advice_for(result.place).load,
        )
        if (slow := _slowest_rate(result, results))
        else result
        for result in results
    ]


def compare_links(results: Sequence[Result]) -> list[Result]:
    """Return the results of pairs of devices, as failed for slow pairs, which name the device or the link.

    A device that is as slow with each of its partners, where a partner is fast with another one, is the slow one
    (DLRover's idea, dlrover/trainer/torch/node_check). Otherwise it is the link between both. In the same way, the
    result of a pair that does not finish names a device; it names none if both or neither finish with another one.
    """
    unfinished = {result.place: 0.0 for result in results if result.outcome.verdict == "unfinished"}
    slow = {result.place: rate for result in results if (rate := _slowest_rate(result, results) or _floor(result))}
    expected = f"at least {_SLOW[LINK]:.0%} of the median of the other pairs, and {SLOWEST_LINK_GB_PER_S} GB/s"
    return [
        _failed(
            result,
            f"{slow[result.place].words}: {blame(result.place, results, slow)}",
            expected,
            advice_for(result.place).links,
        )
        if result.place in slow
        else _unfinished(result, _suspect(result.place, results, unfinished))
        for result in results
    ]


def _unfinished(pair: Result, device: str) -> Result:
    """Return the result of a pair with the name of the device that does not let it finish, if there is one."""
    measured = f"{device} does not finish with any of its partners: {pair.outcome.measured}"
    return replace(pair, outcome=replace(pair.outcome, measured=measured)) if device else pair


def blame(pair: str, results: Sequence[Result], slow: Mapping[str, SlowRate]) -> str:
    """Return which device is slow, or that the link is, for a slow pair."""
    if device := _suspect(pair, results, {place: rate.part for place, rate in slow.items()}):
        return f"{device} is slow, with each of its partners"
    return f"the link between {' and '.join(pair.split())} is slow"


def _suspect(pair: str, results: Sequence[Result], bad: Mapping[str, float]) -> str:
    """Return the device of a pair that is as bad with each of its partners; empty if not just one of both is.

    Args:
        pair: Its place.
        results: Of all pairs.
        bad: Of each bad pair, the part of the others' rate that it reaches.
    """
    suspected = []
    for device in pair.split():
        pairs = [result.place for result in results if device in result.place.split()]
        parts = [bad[place] for place in pairs if place in bad]
        if 1 < len(pairs) == len(parts) and max(parts) <= _AS_SLOW * min(parts):
            suspected.append(device)
    return suspected[0] if len(suspected) == 1 else ""


def compare_models(results: Sequence[Result]) -> list[Result]:
    """Return the results of opening the devices, as failed for another name or memory than most have."""
    passed = [result for result in results if result.outcome.verdict == "passed"]
    names = Counter(result.outcome.measured for result in passed)
    sizes = [result.outcome.figures[MEMORY] for result in passed if MEMORY in result.outcome.figures]
    return [
        _failed(
            result,
            f"{result.outcome.measured} with {result.outcome.figures.get(MEMORY, 0):,.0f} MiB of memory",
            f"as the other devices: {names.most_common(1)[0][0]} with {statistics.median(sizes):,.0f} MiB",
            "train on equal devices: the slowest and smallest one decides",
        )
        if result in passed and (_is_other_name(result, names) or _is_other_size(result, sizes))
        else result
        for result in results
    ]


def _is_other_name(result: Result, names: Counter[str]) -> bool:
    return names[result.outcome.measured] < max(names.values()) or max(names.values()) == 1 < len(names)


def _is_other_size(result: Result, sizes: Sequence[float]) -> bool:
    size = result.outcome.figures.get(MEMORY)
    return size is not None and size < (1 - _SAME_MEMORY) * max(sizes)


def _slowest_rate(result: Result, results: Sequence[Result]) -> SlowRate | None:
    """Return the rate that is the farthest below the median of the others, or below the one before; None if none is."""
    slow = []
    if (kept := _kept_part(result.outcome.figures)) < _LEAST_KEPT:
        slow.append(SlowRate(kept, f"{kept:.0%} of its rate is left when it is warm"))
    others = [other.outcome.figures for other in results if other is not result and other.outcome.verdict == "passed"]
    for name, value in result.outcome.figures.items():
        rates = [figures[name] for figures in others if name in figures]
        if not rates or not name.endswith(_RATES):
            continue
        middle = statistics.median(rates)
        if value < _least_part(name, result.outcome.figures) * middle:
            words = f"{name} is {value:.3g}, {value / middle:.0%} of the others' {middle:.3g}"
            slow.append(SlowRate(value / middle, words))
    return min(slow, key=lambda rate: rate.part, default=None)


def _kept_part(figures: Mapping[str, float]) -> float:
    """Return the rate of a warm device as a part of the one before; 1 for a device that was not warmed."""
    cold, warm = (figures.get(f"{name}{_RATES[0]}", 1.0) for name in (COLD, WARM))
    return warm / cold


def _least_part(name: str, figures: Mapping[str, float]) -> float:
    """Return the part of the others' median below which a device's rate is slow; 0 for one that is not compared."""
    kind = name.partition("_")[0]
    if SUSTAINED in name:
        return _SUSTAINED_SLOW.get(kind, 0.0)
    return _SLOW.get(kind, 0.0) * max(_LEAST_STEADY, _steadiness(name, figures))


def _steadiness(name: str, figures: Mapping[str, float]) -> float:
    """Return the mean rate as a part of the best one: where others disturb a device, only a large difference tells."""
    unit = next(unit for unit in _RATES if name.endswith(unit))
    return figures.get(f"{name.removesuffix(unit)}_{SUSTAINED}{unit}", figures[name]) / figures[name]


def _floor(result: Result) -> SlowRate | None:
    rate = result.outcome.figures.get(f"{LINK}_gb_per_s")
    if rate is None or rate >= SLOWEST_LINK_GB_PER_S:
        return None
    return SlowRate(rate / SLOWEST_LINK_GB_PER_S, f"{LINK}_gb_per_s is {rate:.3g}")


def _failed(result: Result, measured: str, expected: str, advice: str) -> Result:
    outcome = replace(result.outcome, verdict="failed", measured=measured, expected=expected, advice=advice)
    return replace(result, outcome=outcome)
