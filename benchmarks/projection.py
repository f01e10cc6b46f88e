"""The speed on NPUs, projected from exact counts and stated assumptions: `python -m benchmarks.projection`.

This has never run on an NPU. Each assumption has a low, a middle and a high value, and an option that replaces it:
`--dispatch-us 80` sets all three, `--dispatch-us 200 130 50` each. The model of a step:

- The host hands the operators to the device one by one; a captured step is a few operators and three replays.
- The device computes with a share of its peak, and moves bytes with a share of its bandwidth, one after the other.
- A step takes the longer one of the two, because the device works from a queue.
- Ranks then exchange the gradients: within a node by HCCS, between nodes by RoCE, each NPU an eighth of them. An eager
  step hides a part of that behind its backward pass; a captured one hides nothing.
- Several ranks wait for the slowest one.
- Batches are ready in time: reading and decoding images is not in the model, and can limit a node (docs/performance.md,
  the data pipeline).
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.report import RESULTS, Result, ResultError, read_result
from docs.formats import table

NODES = (1, 16)
NPUS_OF_NODE = 8
GRAPHS = 3
"""Replays of a captured step (docs/ascend.md)."""
OPTIMIZER_BYTES = 32
"""Bytes for each parameter in O2: widen a gradient (2 read, 4 written), update weight and momentum (gradient, both
read and written, 20), round the weight (4 and 2)."""
MOVED = "bytes moved by a forward and backward pass, of each image"
MOVED_ONCE = "bytes moved by it, of each step"
FLOPS = "operations of a forward and backward pass, of an image"
GRADIENTS = "gradients that ranks exchange in O2, of each step"
PARAMETERS = "parameters"
EAGER, CAPTURED = "operators, O2", "operators of a captured step, O2"
COUNTS = {
    "step_counts": {FLOPS: "GFLOP", MOVED: "MB", MOVED_ONCE: "MB", PARAMETERS: "M", GRADIENTS: "MB"},
    "npu_host_work": {EAGER: "", CAPTURED: ""},
}
"""The figures that the projection reads, with their units, by benchmark."""


@dataclasses.dataclass(frozen=True)
class Assumption:
    """A value that no count gives: pessimistic, likely and optimistic."""

    name: str
    meaning: str
    values: tuple[float, float, float]
    source: str


ASSUMPTIONS = (
    Assumption("batch-size", "images per NPU", (32, 32, 32), "the seed's"),
    Assumption(
        "dispatch-us",
        "µs of the host for an operator",
        (130, 130, 40),
        "low and middle: the seed's 0.46 s for about 3,500 operators, if its host was the limit; here it is 12",
    ),
    Assumption("replay-us", "µs of the host to replay a graph", (1000, 300, 100), "none: a guess"),
    Assumption("peak-tflops", "peak in fp16, TFLOP/s", (256, 256, 256), "Ascend 910A, Huawei"),
    Assumption(
        "compute-share",
        "share of the peak",
        (0.16, 0.25, 0.4),
        "low: ResNet-50 on the same chip, 1,680 images/s (ModelZoo)",
    ),
    Assumption("memory-gbs", "bandwidth of the memory, GB/s", (1200, 1200, 1200), "Ascend 910A"),
    Assumption(
        "memory-share",
        "share of the bandwidth",
        (0.22, 0.34, 0.6),
        "low: what the seed moved in its 0.46 s; middle: timm's published run on an RTX 3090, 83 images/s",
    ),
    Assumption("hccs-gbs", "GB/s between NPUs of a node", (10, 20, 30), "high: an HCCS link of 240 Gbit/s"),
    Assumption("roce-gbs", "GB/s of an NPU to other nodes", (6, 9, 11), "its port has 100 Gbit/s, 12.5 GB/s"),
    Assumption("hidden-share", "share of the exchange hidden, eager", (0, 0.5, 0.9), "none: a guess"),
    Assumption("wait-share", "share of a step that waits for the slowest", (0.05, 0.02, 0.01), "none: a guess"),
)
Values = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second of all NPUs, and what takes the largest part of a step: host, device or network."""

    images_s: float
    limit: str


def project(counts: Values, values: Values, npus: int, *, captured: bool) -> Rate:
    """Return the rate of the training.

    Args:
        counts: by the names of `COUNTS`; in its units.
        values: of each assumption.
        npus: of all nodes, which have eight each if there are several.
        captured: whether the steps are captured.
    """
    images = values["batch-size"]
    host_s = 1e-6 * values["dispatch-us"] * counts[CAPTURED if captured else EAGER]
    if captured:
        host_s += 1e-6 * values["replay-us"] * GRAPHS
    compute_s = images * counts[FLOPS] / (1e3 * values["peak-tflops"] * values["compute-share"])
    megabytes = images * counts[MOVED] + counts[MOVED_ONCE] + OPTIMIZER_BYTES * counts[PARAMETERS]
    device_s = compute_s + megabytes / (1e3 * values["memory-gbs"] * values["memory-share"])
    exposed_s = exchange_s(counts[GRADIENTS], values, npus) * (1 if captured else 1 - values["hidden-share"])
    step_s = (max(host_s, device_s) + exposed_s) / (1 - (values["wait-share"] if npus > 1 else 0))
    parts = {"host": host_s, "device": device_s, "network": exposed_s}
    return Rate(npus * images / step_s, max(parts, key=parts.__getitem__))


def exchange_s(megabytes: float, values: Values, npus: int) -> float:
    """Return the seconds in which all NPUs add up their gradients, without latency.

    A ring moves 2 (n - 1) / n of them over each link. Between nodes each NPU exchanges its part of the node's sum.
    """
    local = min(npus, NPUS_OF_NODE)
    nodes = npus // local
    within = 2 * (local - 1) / local * megabytes / (1e3 * values["hccs-gbs"])
    return within + 2 * (nodes - 1) / nodes * megabytes / local / (1e3 * values["roce-gbs"])


def read_counts(folder: Path) -> dict[str, float]:
    """Return the counts from the results of the benchmarks.

    Raises:
        ResultError: a file is missing, broken, or lacks a count.
    """
    return {
        name: value for benchmark in COUNTS for name, value in _counts_of(read_result(folder / f"{benchmark}.json"))
    }


def _counts_of(result: Result) -> Iterator[tuple[str, float]]:
    figures = {figure.name: figure.ours.median for figure in result.figures}
    for name in COUNTS[result.name]:
        if name not in figures:
            raise ResultError(f"{result.name}.json has no figure `{name}`; measure again with `{result.command}`")
        yield name, figures[name]


def section(counts: Values, assumptions: Sequence[Assumption] = ASSUMPTIONS) -> Iterator[str]:
    """Yield the lines of the Markdown section."""
    columns = [{part.name: part.values[index] for part in assumptions} for index in range(3)]
    yield "## Projection for NPUs\n"
    yield "**No figure of this section was measured: nothing has run on an NPU.** It follows from the counts above and"
    yield "the assumptions below. `python -m benchmarks.projection --help` has the model, and an option for each"
    yield "assumption, such as `--dispatch-us 80`. A captured step gains where the host limits an eager one, and loses"
    yield "what it cannot hide of the exchange. Batches are taken to be ready in time: a node's cores can load fewer"
    yield "images than its NPUs train (see the data pipeline). The seed's code reached 69 images/s on one 910A (its"
    yield "README).\n"
    rows: list[tuple[str, ...]] = []
    for npus in (1, *(nodes * NPUS_OF_NODE for nodes in NODES)):
        for captured in (False, True):
            rates = [project(counts, values, npus, captured=captured) for values in columns]
            cells = [f"{rate.images_s:,.0f} ({rate.limit})" for rate in rates]
            rows.append((str(npus), "captured" if captured else "eager", *cells))
    yield from table("Images per second, and what limits them:", ("NPUs", "step", "low", "middle", "high"), rows)
    rows = [(name, f"{counts[name]:,.5g}", unit) for names in COUNTS.values() for name, unit in names.items()]
    yield from table("The counts, of pnasnet5large at 331 px:", ("count", "value", "unit"), rows)
    yield from table(
        "The assumptions:",
        ("option", "meaning", "low", "middle", "high", "source"),
        [
            (f"`--{part.name}`", part.meaning, *(f"{value:g}" for value in part.values), part.source)
            for part in assumptions
        ],
    )


def main(arguments: Sequence[str]) -> int:
    """Print the projection; return 1 without counts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.projection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for part in ASSUMPTIONS:
        values = ", ".join(f"{value:g}" for value in part.values)
        parser.add_argument(
            f"--{part.name}", nargs="+", type=float, metavar="N", help=f"{part.meaning} [default: {values}]"
        )
    options = vars(parser.parse_args(arguments))
    try:
        assumptions = [replaced(part, options[part.name.replace("-", "_")]) for part in ASSUMPTIONS]
    except ValueError as error:
        parser.error(str(error))
    try:
        counts = read_counts(RESULTS)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(section(counts, assumptions)))
    return 0


def replaced(part: Assumption, values: Sequence[float] | None) -> Assumption:
    """Return the assumption with other values.

    Raises:
        ValueError: there are neither one nor three values, or one is out of range.
    """
    if values is None:
        return part
    if len(values) not in (1, 3):
        raise ValueError(f"--{part.name}: give one value, or a low, a middle and a high one")
    # A share of time can be 0, and a share of a peak can be 1.
    is_share, divides = part.name.endswith("-share"), part.name in ("compute-share", "memory-share")
    least, most = (0 if is_share and not divides else 1e-9), (1 if is_share else float("inf"))
    if part.name == "wait-share":
        most = 0.99
    if not all(least <= value <= most for value in values):
        raise ValueError(f"--{part.name}: {' '.join(f'{value:g}' for value in values)} is out of range")
    low, middle, high = values if len(values) == 3 else (*values,) * 3
    return dataclasses.replace(part, values=(low, middle, high))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
