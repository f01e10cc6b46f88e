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
