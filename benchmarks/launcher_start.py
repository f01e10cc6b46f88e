"""Launcher start-up: `python -m launcher --help` and friends against `python -c pass`, interleaved in one run.

`python -m benchmarks.launcher_start` prints the medians and writes benchmarks/results/launcher_start.md. The bar is
0.4 s more than an empty interpreter: a command line that answers later feels broken.
"""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROUNDS = 15
BAR_S = 0.4
RESULT = Path(__file__).parent / "results" / "launcher_start.md"
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "python -m launcher --help": ("-m", "launcher", "--help"),
    "python -m launcher submit --help": ("-m", "launcher", "submit", "--help"),
    "python -m launcher list": ("-m", "launcher", "list"),
}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Median wall seconds of each command; every round runs each of them once, so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name, words in COMMANDS.items():
            times[name].append(_seconds(words))
    # The first round fills the page cache.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _seconds(words: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def table(medians: dict[str, float]) -> str:
    """The result as a Markdown page with everything that is needed to repeat it."""
    base = medians["python -c pass"]
    rows = [f"| `{name}` | {value:.3f} | {value - base:+.3f} |" for name, value in medians.items()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("cyclopts", "rich", "pydantic"))
    return "\n".join(
        [
            "# Launcher start-up",
            "",
            "Command: `python -m benchmarks.launcher_start`",
            "",
            f"Median of {ROUNDS} interleaved runs; bar for `--help`: at most {BAR_S} s more than `python -c pass`.",
            f"Python {platform.python_version()}, {versions}; {machine()}.",
            "",
            "| command | wall s | more than `python -c pass` |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def machine() -> str:
    """The class of machine: its processor and how many there are."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names) or '?'} CPUs"


def main() -> int:
    """Measure, print, keep; exit 1 if the bar is missed."""
    medians = measure()
    text = table(medians)
    print(text)
    RESULT.write_text(text, encoding="utf-8")
    more = medians["python -m launcher --help"] - medians["python -c pass"]
    print(f"--help: {more:.3f} s more than python -c pass (bar {BAR_S} s)")
    return 0 if more <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
