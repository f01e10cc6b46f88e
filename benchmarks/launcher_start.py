"""Launcher start-up: `python -m launcher --help` and friends against torchx's, interleaved in one run.

`python -m benchmarks.launcher_start` installs torchx into a cache on first use, prints the medians and writes
benchmarks/results/launcher_start.md. The bars: `--help` and `render` take at most half the time of `torchx --help` and
`torchx run --dryrun`, because a slower command line feels broken.
"""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from benchmarks import peers
from benchmarks.report import machine, publish

ROUNDS = 15
BAR = 0.5
EMPTY, HELP, RENDER = "python -c pass", "python -m launcher --help", "python -m launcher render"
PEER_HELP, PEER_RENDER = "torchx --help", "torchx run --dryrun"
LAUNCHER = (sys.executable, "-m", "launcher")
OURS = {
    EMPTY: (sys.executable, "-c", "pass"),
    HELP: (*LAUNCHER, "--help"),
    "python -m launcher submit --help": (*LAUNCHER, "submit", "--help"),
    "python -m launcher list": (*LAUNCHER, "list", "--backend", "local"),
    RENDER: (*LAUNCHER, "render", "--image", "registry.example/pnas:0.1.0", "--npus", "8"),
}
# The same job: one Volcano pod with eight processes. No workspace, because a workspace needs Docker.
DRY_RUN = ("--workspace", "", "-s", "kubernetes", "-cfg", "queue=default,namespace=default")
DRY_RUN_JOB = ("dist.ddp", "-j", "1x8", "--image", "registry.example/pnas:0.1.0", "--script", "main.py")


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median wall seconds of each command; each round runs every command once, so noise affects all."""
    torchx = str(peers.torchx())
    theirs = {PEER_HELP: (torchx, "--help"), PEER_RENDER: (torchx, "run", "--dryrun", *DRY_RUN, *DRY_RUN_JOB)}
    commands: Mapping[str, Sequence[str]] = {**OURS, **theirs}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, words in commands.items():
            times[name].append(_seconds(words))
    # The first round fills the page cache.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _seconds(words: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the peer's time that have a bar."""
    return {HELP: medians[HELP] / medians[PEER_HELP], RENDER: medians[RENDER] / medians[PEER_RENDER]}


def page(medians: dict[str, float]) -> list[str]:
    """Return the lines of the page, with the command and the versions that repeat it."""
    base = medians[EMPTY]
    rows = [f"| `{name}` | {value:.3f} | {value - base:+.3f} |" for name, value in medians.items()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("cyclopts", "rich", "pydantic"))
    bars = [
        f"- {'met' if ratio <= BAR else 'MISSED'}: `{name}` takes {ratio:.2f} of torchx's time (bar {BAR})"
        for name, ratio in ratios(medians).items()
    ]
    return [
        "# Launcher start-up",
        "",
        "Command: `python -m benchmarks.launcher_start`",
        "",
        f"Median of {ROUNDS} interleaved runs. Python {platform.python_version()}, {versions}; torchx",
        f"{peers.TORCHX}; {machine()}.",
        "",
        f"| command | wall s | more than `{EMPTY}` |",
        "|---|---|---|",
        *rows,
        "",
        *bars,
    ]


def main() -> int:
    """Measure and publish; return 1 if a bar is missed."""
    medians = measure()
    publish("launcher_start.md", page(medians))
    return 0 if max(ratios(medians).values()) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
