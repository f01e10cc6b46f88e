"""The generated page docs/performance.md: every figure of `benchmarks/results`, next to its peer and its bar."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.__main__ import ALL, LONG
from benchmarks.projection import COUNTS, read_counts
from benchmarks.projection import section as projection
from benchmarks.report import RESULTS, Result, ResultError, read_result

PAGE = Path(__file__).with_name("performance.md")

_INTRODUCTION = """\
# Performance

`make generate` writes this page from the raw results in [benchmarks/results](../benchmarks/results), and `make bench`
measures them again (CONTRIBUTING.md). Absolute times belong to one machine; the ratios are worth more. Ours and its
peer take turns in one run, so that noise affects both. A cell is the median of the turns, with the least and the most;
the ratio is the median of the ratios of the turns. A small ratio is good for times and memory, a large one for rates.
No figure comes from a real NPU.
"""

_FLOORS = """\
## What holds the missed bars

A row `its floor` is measured in the same run. The other figures of this section are of 2026-12-01, on two quiet cores
with torch 2.14.1 and oneDNN 3.12, from torch's profiler and `ONEDNN_VERBOSE=profile_exec`.

- A training step is convolutions for three quarters, and timm has the same ones. Their 1x1 forward passes and gradients
  of maps run at 430 to 480 GFLOP/s of about 515, the gradients of weights of 216 and 432 channels at 220 to 400: maps
  come from memory. Of 1,217 ms by the profiler, 302 are no convolutions: batch norms (84), sums (43), copies and zeros
  around strips (49), the optimizer (27), ReLUs (30), pools (22) are limited by memory, the rest is Python and dispatch.
  Paid and stayed: gradients of wide depthwise weights in strips (0.91 to 0.88 of timm's step), strided ones too, and
  gradients of wide 1x1 weights by products of matrices (0.88 to 0.83; with one thread 0.57 to 0.53 of the CPU time),
  1x1 convolutions by oneDNN with one thread too. Paid nothing and went: huge pages, matrix products of MKL (half the
  rate), products for narrower weights, gradients of depthwise maps by forward convolutions.
- An evaluation is convolutions for four fifths, and only these already take longer than the bar. Paid and stayed:
  folded batch norms, 1x1 weights in oneDNN's order once. Paid 1 % or nothing and went: depthwise weights in that
  order, a ReLU within the convolution before it. Not tried: a sum within a convolution; all sums are 2 % of the time.

Of the bars that are met, two are near their limits, and were missed in an earlier run: the log's 99th percentile
through the whole command (a median of 1.4 times `kubectl logs`; the cause is not known), and packed photos from this
disk (0.938 in five turns: two cores decode them nearly all of the time, and there is no delay that a pack could save).
A compiled step takes as long as one without a compiler: `--compile` is no gain on this CPU, and has not run on a GPU.
"""


def files() -> dict[Path, str]:
    """Return the text of the page.

    Raises:
        ResultError: a file of results cannot be read, or belongs to no benchmark.
    """
    return {PAGE: "\n".join(page(RESULTS, (*ALL, *LONG)))}


def page(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the page about the results in the folder.

    Args:
        folder: of the raw results.
        names: all benchmarks, in the order of the page.

    Raises:
        ResultError: a file of results cannot be read, or belongs to no benchmark.
    """
    paths = {path.stem: path for path in sorted(folder.iterdir())}
    for name in paths.keys() - set(names):
        raise ResultError(f"{paths[name]}: no benchmark has this name; delete the file")
    results = [read_result(paths[name]) for name in names if name in paths]
    yield _INTRODUCTION
    yield from _summary(results)
    missing = [f"`python -m benchmarks.{name}`" for name in names if name not in paths]
    if missing:
        yield f"Not measured yet: {', '.join(missing)}.\n"
    yield _FLOORS
    for result in results:
        yield from result.section()
    if paths.keys() >= COUNTS.keys():
        yield from projection(read_counts(folder))


def _summary(results: Sequence[Result]) -> Iterator[str]:
    bars = sum(figure.bar is not None for result in results for figure in result.figures)
    missed = [f"- {name} ({result.title})" for result in results for name in result.missed]
    yield f"{bars - len(missed)} of {bars} bars are met.{' Missed:' if missed else ''}\n"
    if missed:
        yield "\n".join(missed) + "\n"
