"""The cost of a snapshot of pnasnet5large: how long it blocks the training loop, against a plain copy of its bytes.

Both take turns, so that changes of the machine's speed affect them alike. The next turn begins when the writer's thread
has ended: a loop on an accelerator leaves it the processors.
"""

import itertools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkpoint_save import OUTPUT, build_large_training, checkpoints_of, plain_copy
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.checkpoint.reading import list_checkpoints, verify_checkpoint
from trainer.checkpoint.snapshot import snapshot_folder
from trainer.records.run_records import Records
from trainer.training.progress import TrainingProgress

ROUNDS, QUICK_ROUNDS = 9, 3
BAR = 1.3


@dataclass(frozen=True)
class Turn:
    """Seconds of one plain copy, of the loop's wait for one snapshot, and of its writing afterwards."""

    copy: float
    blocked: float
    written: float


def measure(quick: bool) -> list[Figure]:
    """Return the figures of a snapshot."""
    torch.set_num_threads(1)
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=OUTPUT) as folder, snapshot_folder() as memory:
        turns, mebibytes = _turns(Path(folder), memory, QUICK_ROUNDS if quick else ROUNDS)
    copy, blocked, written = (
        Series(label, [getattr(turn, name) for turn in turns])
        for name, label in (("copy", "plain copy"), ("blocked", "snapshot"), ("written", "snapshot"))
    )
    return [
        Figure("the loop waits", "s", blocked, copy, Bar(BAR)),
        Figure("a thread writes and hashes it", "s", written),
        Figure("size", "MiB", Series("snapshot", [mebibytes])),
    ]


def _turns(folder: Path, memory: Path, rounds: int) -> tuple[list[Turn], float]:
    """Return the turns, and the size of a snapshot in MiB."""
    training = build_large_training(folder)
    checkpoints = checkpoints_of(training, folder, snapshots=memory)
    copy, progress, turns = plain_copy(training), TrainingProgress(), []
    with Records(folder, training.config, rank=0, world_size=1) as records:
        for number in range(rounds + 1):
            print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
            times = [time.perf_counter()]
            copy()
            times.append(time.perf_counter())
            progress.global_step += 1
            checkpoints.snapshot(training, progress, records)
            times.append(time.perf_counter())
            checkpoints.finish(training)
            times.append(time.perf_counter())
            turns.append(Turn(*(end - begin for begin, end in itertools.pairwise(times))))
    print(file=sys.stderr)
    taken = list_checkpoints(memory)
    if not taken:
        sys.exit("error: no snapshot was taken, for the reason in the warning above")
    manifest = verify_checkpoint(taken[0])
    return turns[1:], manifest.bytes / 2**20


BENCHMARK = Benchmark(
    name="snapshot",
    title="Snapshot of pnasnet5large",
    method="Model, momentum, moving average and statistics, on the CPU, with one thread; the peer copies the "
    "same bytes within memory. The copy from an accelerator's memory is not measured here.",
    measure=measure,
    packages=("torch",),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
