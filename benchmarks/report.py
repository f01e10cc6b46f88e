"""The result of a benchmark: `results/NAME.json`, and its section of docs/performance.md, which is made from it.

A module of this package measures figures, ours and its peer's in turns, and ends with `run(Benchmark(...))`:

    Figure("training step, wall time", "s", Series("ours", [1.4, 1.5]), Series("timm", [1.6, 1.6]), Bar(0.9))

A figure keeps all samples, so that a reader can judge the spread. The ratio is the median of the ratios of the turns:
noise of the machine that lasts longer than a turn affects both its sides. This module imports no torch: the
documentation is generated from the results in a moment.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from docs.formats import pretty_json, table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = ROOT / "output" / "bench-quick"
"""Results of quick runs, which nothing reads: they show a change, and are not published."""
MISSED, NOT_MEASURED = 3, 4
"""Exit codes of a benchmark that missed a bar, and of one that lacks something."""
_CLOSED = ConfigDict(extra="forbid")


class NotMeasuredError(Exception):
    """This machine lacks something that the benchmark needs; `str(error)` says what in one line."""


class ResultError(Exception):
    """A file of results cannot be read; `str(error)` is one line: what is wrong, where, and the next step."""


@dataclasses.dataclass(frozen=True)
class Series:
    """What was measured, such as `timm, nhwc`, and its value in each turn."""

    __pydantic_config__: ClassVar = _CLOSED
    name: str
    samples: Sequence[float]

    def __post_init__(self) -> None:
        """Round the samples to six digits, which is more than they are worth.

        Raises:
            ValueError: there is no sample.
        """
        if not self.samples:
            raise ValueError(f"{self.name} has no samples")
        object.__setattr__(self, "samples", tuple(float(f"{sample:.6g}") for sample in self.samples))

    @property
    def median(self) -> float:
        """The median of the turns."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        """Return the median and, of several samples, the least and the most."""
        least, most = min(self.samples), max(self.samples)
        spread = f" ({_number(least)} to {_number(most)})" if least != most else ""
        return f"{_number(self.median)}{spread}"


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a figure must hold: its ratio to the peer, or its own median (`of="ours"`)."""

    __pydantic_config__: ClassVar = _CLOSED
    limit: float
    side: Literal["at most", "at least"] = "at most"
    of: Literal["ratio", "ours"] = "ratio"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured quantity: ours, if possible its peer's from the same turns, and if there is one its bar."""

    __pydantic_config__: ClassVar = _CLOSED
    name: str
    unit: str
    ours: Series
    peer: Series | None = None
    bar: Bar | None = None

    def __post_init__(self) -> None:
        """Check that the figure is whole.

        Raises:
            ValueError: the peer has another number of turns, or is 0, or a bar of the ratio has no peer.
        """
        if self.peer is not None and len(self.peer.samples) != len(self.ours.samples):
            raise ValueError(f"{self.name}: the peer has another number of samples")
        if self.peer is not None and min(self.peer.samples) <= 0:
            raise ValueError(f"{self.name}: the peer's samples are not all above 0")
        if self.bar is not None and self.bar.of == "ratio" and self.peer is None:
            raise ValueError(f"{self.name}: a bar of the ratio needs a peer")

    @property
    def ratio(self) -> Series | None:
        """Ours divided by the peer's, turn by turn."""
        if self.peer is None:
            return None
        return Series("ratio", [ours / peer for ours, peer in zip(self.ours.samples, self.peer.samples, strict=True)])

    @property
    def met(self) -> bool:
        """Whether the bar holds; true without a bar."""
        if self.bar is None:
            return True
        judged = self.ours if self.bar.of == "ours" else self.ratio
        assert judged is not None
        return judged.median <= self.bar.limit if self.bar.side == "at most" else judged.median >= self.bar.limit

    def row(self) -> tuple[str, ...]:
        """Return the cells of the figure in the table of its section."""
        unit = f" {self.unit}" if self.unit else ""
        ours, peer = (f"{side.name}: {side}{unit}" if side else "" for side in (self.ours, self.peer))
        bar = ""
        if self.bar is not None:
            limit = f"{self.bar.side} {_number(self.bar.limit)}{unit if self.bar.of == 'ours' else ''}"
            bar = f"{limit}: {'met' if self.met else '**missed**'}"
        return self.name, ours, peer, str(self.ratio or ""), bar, str(len(self.ours.samples))


@dataclasses.dataclass(frozen=True)
class Result:
    """All that a run of a benchmark found, as it stands in its file."""

    __pydantic_config__: ClassVar = _CLOSED
    format: Literal[1]
    name: str
    title: str
    method: str
    command: str
    date: str
    commit: str
    processor: str
    load: float
    """The load average of the machine when the run began: 0 if it was quiet."""
    versions: dict[str, str]
    figures: tuple[Figure, ...]

    @property
    def missed(self) -> list[str]:
        """The names of the figures that miss their bar."""
        return [figure.name for figure in self.figures if not figure.met]

    def section(self) -> Iterator[str]:
        """Yield the lines of the Markdown section."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield from (f"## {self.title}", "", self.method, "")
        yield f"`{self.command}` on {self.date}, commit {self.commit}: {versions}; {self.processor},"
        yield f"load average {self.load:.1f} at the start.\n"
        heads = ("figure", "ours", "peer", "ratio", "bar", "turns")
        lines = list(table("", heads, [figure.row() for figure in self.figures]))
        yield from lines[1:]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a module of this package measures: `python -m benchmarks.NAME`."""

    name: str
    title: str
    method: str
    """What was measured and how, in Markdown: sizes, settings, what a turn is."""
    measure: Callable[[bool], Sequence[Figure]]
    """Returns the figures; with True in a small part of the time, by fewer turns.

    Raises:
        NotMeasuredError: the machine lacks something.
    """
    packages: Sequence[str] = ()
    """The Python packages whose versions matter."""
    peers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other peers and their versions."""


def run(benchmark: Benchmark) -> int:
    """Measure, print the section, write the file of the result; return the exit code.

    0: every bar is met; 3: a bar is missed; 4: not measured; 130: Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.method)
    parser.add_argument("--quick", action="store_true", help=f"fewer turns; the result goes to {_shown(QUICK_RESULTS)}")
    quick: bool = parser.parse_args().quick
    # The result is about the code and the machine as they are now.
    empty = _result(benchmark, quick)
    try:
        result = dataclasses.replace(empty, figures=tuple(benchmark.measure(quick)))
    except NotMeasuredError as error:
        print(f"not measured: {benchmark.name}: {error}", file=sys.stderr)
        return NOT_MEASURED
    except KeyboardInterrupt:
        print(f"{benchmark.name}: stopped; its last result stays", file=sys.stderr)
        return 130
    print("\n".join(result.section()))
    path = write_result(result, QUICK_RESULTS if quick else RESULTS)
    print(f"written: {_shown(path)}{'' if quick else ' (`make generate` brings it into docs/performance.md)'}")
    return MISSED if result.missed else 0


def _result(benchmark: Benchmark, quick: bool) -> Result:
    return Result(
        1,
        benchmark.name,
        benchmark.title,
        benchmark.method,
        command=f"python -m benchmarks.{benchmark.name}{' --quick' if quick else ''}",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        commit=_commit(),
        processor=machine(),
        load=round(os.getloadavg()[0], 1),
        versions={
            "Python": platform.python_version(),
            **{name: version(name) for name in benchmark.packages},
            **benchmark.peers,
        },
        figures=(),
    )


def write_result(result: Result, folder: Path) -> Path:
    """Write the file of the result; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(pretty_json(_ADAPTER.dump_python(result, mode="json")) + "\n", encoding="utf-8")
    return path


def read_result(path: Path) -> Result:
    """Read the file of a result.

    Raises:
        ResultError: it cannot be read, is damaged, or has another form.
    """
    again = f"measure again with `python -m benchmarks.{path.stem}`"
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise ResultError(f"{_shown(path)}: {error.strerror}; {again}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ResultError(f"{_shown(path)}: {place or 'the file'}: {first['msg']}; {again}") from error


_ADAPTER = TypeAdapter(Result)


def machine() -> str:
    """Return the CPU's model name, or the architecture if the system does not tell the name, and the number of CPUs."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"


def _commit() -> str:
    """Return the commit of the code, with `+` if the code differs from it."""
    code = (":/", ":!benchmarks/results", ":!docs/performance.md")
    done = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--abbrev=10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return "unknown"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *code], cwd=ROOT, check=False).returncode
    return done.stdout.strip() + "+" * changed


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _number(value: float) -> str:
    """Return three digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
