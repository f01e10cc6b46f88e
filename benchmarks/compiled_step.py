"""A compiled training step of pnasnet5large at 331 px against timm's, compiled too, and how long both compile.

Both networks are in one process with the same weights and images, in the layout that is the faster one on a CPU. Each
compiles in its first step, one after the other, into an empty cache; then their steps take turns. Ours is compiled as
`--compile` does it, timm's by `torch.compile` with its defaults.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from benchmarks.model_step import (
    IMAGES,
    OURS,
    SIDE,
    WARM_UP,
    in_turns,
    make_networks,
    run_as_a_worker,
    time_figures,
    training_step,
)
from benchmarks.report import Benchmark, Figure, Series
from trainer.training.compiling import compile_network

ROUNDS, QUICK_ROUNDS = 7, 3
BAR = 0.92


def measure(quick: bool) -> list[Figure]:
    """Return the figures of a compiled step, and of the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        steps = _compiled_steps()
        ours, theirs = (Series(", ".join(key), [_first_step(steps[key])]) for key in (("ours", OURS), ("timm", OURS)))
        times = in_turns("compiled step", steps, QUICK_ROUNDS if quick else ROUNDS)
    return [
        *time_figures("compiled training step", times, BAR),
        Figure("first step, with its compilation, wall time", "s", ours, theirs),
    ]


def _compiled_steps() -> dict[tuple[str, str], Callable[[], None]]:
    both = {key: network for key, network in make_networks().items() if key[1] == OURS}
    compile_network(both["ours", OURS], torch.device("cpu"))
    both["timm", OURS].compile()
    return {key: training_step(network, OURS) for key, network in both.items()}


def _first_step(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    print(f"compiled in {seconds:.0f} s", file=sys.stderr)
    return seconds


BENCHMARK = Benchmark(
    name="compiled_step",
    title="Compiled training step of pnasnet5large",
    method=f"{SIDE} px, fp32, {IMAGES} images; a step is forward, backward and fused SGD with momentum, after "
    f"{WARM_UP} to warm up. Ours is compiled as by `--compile`, timm's by `torch.compile`, each in its first step and "
    "into an empty cache. Both have a CPU worker's environment, whose malloc keeps freed memory.",
    measure=measure,
    packages=("torch", "timm"),
)


if __name__ == "__main__":
    sys.exit(run_as_a_worker(BENCHMARK))
