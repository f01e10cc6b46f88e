"""The cost of a snapshot of pnasnet5large: how long it blocks the training loop, against a plain copy of its bytes.

Both take turns, so that changes of the machine's speed affect them alike. The next turn begins when the writer's thread
has ended: a loop on an accelerator leaves it the processors.
"""

import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkpoint_save import OUTPUT, build_large_training, checkpoints_of, plain_copy
from benchmarks.report import machine, publish
from trainer.checkpoint.reading import list_checkpoints, verify_checkpoint
from trainer.checkpoint.snapshot import COST_SHARE, snapshot_folder
from trainer.records.run_records import Records
from trainer.training.progress import TrainingProgress

ROUNDS = 9
BAR = 1.3


@dataclass(frozen=True)
class Turn:
    """Seconds of one plain copy, of the loop's wait for one snapshot, and of its writing afterwards."""

    copy: float
    blocked: float
    written: float


def main() -> int:
    """Measure and publish; return 1 if the bar is missed."""
    torch.set_num_threads(1)
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=OUTPUT) as folder, snapshot_folder() as memory:
        turns, mebibytes = measure(Path(folder), memory)
    copy, blocked, written = (
        statistics.median(getattr(turn, name) for turn in turns) for name in ("copy", "blocked", "written")
    )
    ratios = sorted(turn.blocked / turn.copy for turn in turns)
    ratio = statistics.median(ratios)
    publish(
        "snapshot.md",
        [
            "# Snapshot of pnasnet5large",
            "",
            f"Model, momentum, moving average and statistics: {mebibytes:,.0f} MiB, on the CPU; medians of {ROUNDS} "
            "turns after a first one that allocates the memory.",
            "",
            "    python -m benchmarks.snapshot",
            "",
            f"torch {torch.__version__}, Python {platform.python_version()}, {machine()}, 1 thread; load average of "
            f"the machine at the end {os.getloadavg()[0]:.1f}",
            "",
            "| figure | value |",
            "|---|---|",
            f"| a plain copy of the same bytes | {copy:.3f} s |",
            f"| a snapshot blocks the loop for | {blocked:.3f} s |",
            f"| ratio | {ratio:.2f} (bar {BAR}; all turns {ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            f"| its thread writes and hashes it in | {written:.2f} s |",
            "",
            f"If the loop's own processors had to write it, {COST_SHARE:.0%} of the time would be a snapshot every "
            f"{(blocked + written) / COST_SHARE:.0f} s; with the processors of a host of NPUs it is nearer to "
            f"{blocked / COST_SHARE:.0f} s. The copy from an accelerator's memory is not measured here.",
        ],
    )
    return 0 if ratio <= BAR else 1


def measure(folder: Path, memory: Path) -> tuple[list[Turn], float]:
    """Return the turns, and the size of a snapshot in MiB."""
    training = build_large_training(folder)
    checkpoints = checkpoints_of(training, folder, snapshots=memory)
    copy, progress, turns = plain_copy(training), TrainingProgress(), []
    with Records(folder, training.config, rank=0, world_size=1) as records:
        for number in range(ROUNDS + 1):
            print(f"\rround {number} of {ROUNDS}", end="", file=sys.stderr, flush=True)
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


if __name__ == "__main__":
    sys.exit(main())
