"""Top-1 of the recipe of `make run` over five seeds, against the code before the step was made faster.

A change of the network's form, of its layout in memory or of a reduction rounds differently. Over five seeds that must
not show in the accuracy: the difference of the seeds' results, in its own standard errors, stays below the limit of a
paired t-test at 5 %. A run that has ended is not repeated: both the sources of a commit and its runs stay in the cache.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import CACHE
from benchmarks.report import ROOT, Bar, Benchmark, Figure, NotMeasuredError, Series, run
from trainer.data.digits import write_digits

BEFORE = "783299d814"
"""The last commit without folded norms, counters on the host, layouts chosen by the device and captured steps."""
SEEDS = 5
T_LIMIT = 2.776
"""Student's t for 4 degrees of freedom, two-sided 5 %."""


def measure(quick: bool) -> list[Figure]:
    """Return top-1 and loss of each seed, and whether both commits differ; with two seeds if it has to be quick.

    Raises:
        NotMeasuredError: there is no repository with both commits.
    """
    commits = (_git("rev-parse", "HEAD").decode().strip()[:10], BEFORE)
    data = CACHE / "digits"
    write_digits(data)
    scores = [[_score(commit, seed, data) for commit in commits] for seed in range(2 if quick else SEEDS)]
    names = ("this commit", f"commit {BEFORE}")

    def figure(name: str, unit: str, key: str) -> Figure:
        ours, theirs = (Series(names[n], [pair[n][key] for pair in scores]) for n in (0, 1))
        return Figure(name, unit, ours, theirs)

    gains = [ours["top1"] - theirs["top1"] for ours, theirs in scores]
    deviation = statistics.stdev(gains)
    error = abs(statistics.mean(gains)) / (deviation / len(gains) ** 0.5) if deviation else 0.0
    mean, mean_before = (Series(names[n], [statistics.mean(pair[n]["top1"] for pair in scores)]) for n in (0, 1))
    return [
        figure("top-1 after the last epoch", "%", "top1"),
        Figure("its mean over the seeds", "%", mean, mean_before),
        figure("loss of the validation images", "", "loss"),
        Figure("difference of the means", "standard errors", Series("paired", [error]), bar=Bar(T_LIMIT, of="ours")),
    ]


def _score(commit: str, seed: int, data: Path) -> dict[str, float]:
    """Return the last evaluation of a run, which is done now if it is not there."""
    name = f"{commit}-seed-{seed}"
    folder = CACHE / "digits_accuracy"
    metrics = folder / name / "metrics.jsonl"
    if not (folder / name / "done").exists():
        options = ("--npus", "2", "--device", "cpu", "--seed", str(seed), "--resume", "auto")
        places = ("--data-path", str(data), "--output", str(folder), "--run-name", name)
        source = _source(commit)
        subprocess.run(
            [sys.executable, "-m", "trainer", "--profile", "digits", *options, *places],
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdout=sys.stderr,
            check=True,
        )
        (folder / name / "done").touch()
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    last: dict[str, float] = next(row for row in reversed(rows) if row["kind"] == "eval")
    return last


def _source(commit: str) -> Path:
    """Return a folder with the sources of a commit."""
    folder = CACHE / "sources" / commit
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=_git("archive", commit), check=True)
    return folder


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise NotMeasuredError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


BENCHMARK = Benchmark(
    name="digits_accuracy",
    title="Accuracy of the digits recipe",
    method="`make run`'s recipe (1,437 training images, 360 validation images, ten epochs, two processes) over five "
    "seeds: a turn is a seed. The bar is the limit of a paired t-test at 5 %.",
    measure=measure,
    packages=("torch",),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
