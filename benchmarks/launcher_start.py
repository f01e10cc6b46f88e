"""Launcher start-up: `python -m launcher --help` and friends against torchx's, interleaved in one run.

The first use installs torchx into a cache. The bars: `--help` and `render` take at most half the time of `torchx
--help` and `torchx run --dryrun`, because a slower command line feels broken.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from benchmarks import peers
from benchmarks.report import Bar, Benchmark, Figure, Series, run

ROUNDS, QUICK_ROUNDS = 15, 4
BAR = 0.5
EMPTY, HELP, RENDER = "python -c pass", "python -m launcher --help", "python -m launcher render"
SUBMIT_HELP, LIST = "python -m launcher submit --help", "python -m launcher list"
PEER_HELP, PEER_RENDER = "torchx --help", "torchx run --dryrun"
LAUNCHER = (sys.executable, "-m", "launcher")
OURS = {
    EMPTY: (sys.executable, "-c", "pass"),
    HELP: (*LAUNCHER, "--help"),
    SUBMIT_HELP: (*LAUNCHER, "submit", "--help"),
    LIST: (*LAUNCHER, "list", "--backend", "local"),
    RENDER: (*LAUNCHER, "render", "--image", "registry.example/pnas:0.1.0", "--npus", "8"),
}
# The same job: one Volcano pod with eight processes. No workspace, because a workspace needs Docker.
DRY_RUN = ("--workspace", "", "-s", "kubernetes", "-cfg", "queue=default,namespace=default")
DRY_RUN_JOB = ("dist.ddp", "-j", "1x8", "--image", "registry.example/pnas:0.1.0", "--script", "main.py")


def measure(quick: bool) -> list[Figure]:
    """Return the wall seconds of each command; each round runs every command once, so noise affects all."""
    torchx = str(peers.torchx())
    theirs = {PEER_HELP: (torchx, "--help"), PEER_RENDER: (torchx, "run", "--dryrun", *DRY_RUN, *DRY_RUN_JOB)}
    commands: Mapping[str, Sequence[str]] = {**OURS, **theirs}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + (QUICK_ROUNDS if quick else ROUNDS)):
        for name, words in commands.items():
            times[name].append(_seconds(words))
    # The first round fills the page cache.
    series = {name: Series(f"`{name}`", values[1:]) for name, values in times.items()}
    return [
        Figure("list the commands", "s", series[HELP], series[PEER_HELP], Bar(BAR)),
        Figure("render a job", "s", series[RENDER], series[PEER_RENDER], Bar(BAR)),
        *(Figure("a start", "s", series[name]) for name in (SUBMIT_HELP, LIST, EMPTY)),
    ]


def _seconds(words: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


BENCHMARK = Benchmark(
    name="launcher_start",
    title="Start of the launcher",
    method="Wall time of whole commands. torchx renders the same job: one Volcano pod with eight processes.",
    measure=measure,
    packages=("cyclopts", "rich", "pydantic"),
    peers={"torchx": peers.TORCHX},
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
