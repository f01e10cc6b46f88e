"""Short runs that a test can stop or kill, and a comparison of a resumed run with an undisturbed one."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.local.conftest import SMALL, small_options
from trainer.checkpoint.reading import read_manifest
from trainer.topology.ports import free_port

RECIPE = {
    "--batch-size": "16",
    "--epochs": "2",
    "--steps": "8",
    "--ema": "0.9",
    "--drop-path": "0.2",
    "--schedule": "cosine-step",
    "--log-interval": "2",
    "--checkpoint-every": "3",
    "--lr": "0.05",
}
_OF_ONE_RUN = {"progress", "time", "corruption", "attempt", "hardware"}
WALL_CLOCK = {"wall_s", "seconds", "pace", "times"}
_TAG = re.compile(r"^\[(rank \d+ [a-z]+:\d+|node \d+) #(\d+)\] (.*)$", re.MULTILINE)
KILLS = int(os.environ.get("PNAS_TEST_RESTART_KILLS", "0"))
"""How often to kill workers of each kind of job; 0 for a few kills of a few kinds."""
HANG_S = 300 * (1 + KILLS)
"""After this time a trainer that still runs hangs."""


def killed_jobs(*few: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Return (nodes, ranks, kills) of the jobs whose workers to kill: `few`, or each kind with KILLS kills."""
    kinds = ((1, 1), (1, 2), (1, 8), (2, 2), (2, 4))
    return [(*kind, KILLS) for kind in kinds] if KILLS else list(few)


def kill_seed() -> int:
    """Return the seed of the random kills; PNAS_TEST_KILL_SEED repeats the kills of an earlier test."""
    return int(os.environ.get("PNAS_TEST_KILL_SEED") or random.SystemRandom().randrange(2**32))


def recipe(*options: str) -> tuple[str, ...]:
    """Return `options`, and the entries of RECIPE and SMALL that they do not set."""
    defaults = (word for flag, value in RECIPE.items() if flag not in options for word in (flag, value))
    return small_options(*options, *defaults)


def expected_bit_exact() -> str:
    """Return the value of `bit_exact` that a resumed run prints; for an NPU's kernels nothing is proven."""
    return "yes" if SMALL["--device"] == "cpu" else '"not proven"'


class BackgroundTrainer:
    """A trainer that runs while the test goes on; its output goes to a file."""

    def __init__(self, output: Path, data: Path, *options: str, name: str) -> None:
        self._log = output / f"{name}-{time.monotonic_ns()}.log"
        folders = ("--data-path", str(data), "--output", str(output), "--run-name", name)
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *folders, *recipe(*options)], stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        """Everything that it has printed so far."""
        return self._log.read_text()

    def wait_for(self, condition: Callable[[str], bool]) -> bool:
        """Wait until the output satisfies `condition`; return False if the trainer ends before."""
        deadline = time.monotonic() + HANG_S
        while not condition(self.output):
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.output
            time.sleep(
                0.004
            )  # short, because a test acts at this very moment; not shorter, as each look reads the file
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the trainer, which starts the workers."""
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        """Return the process ids of the living workers, in the order of their start."""
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def kill(self, *, trainer: bool, workers: list[int]) -> None:
        """Send SIGKILL to the trainer if asked, and to `workers`, as nearly at once as possible."""
        for number in ([self._process.pid] if trainer else []) + workers:
            os.kill(number, signal.SIGKILL)

    def wait(self) -> int:
        """Wait until the trainer and its workers have ended; return the exit code."""
        return self._process.wait(timeout=HANG_S)


def start_nodes(output: Path, data: Path, *options: str, nodes: int) -> list[BackgroundTrainer]:
    """Start the trainers of all nodes of the run `killed`, on this machine; each has its own memory for snapshots."""
    place = ("--nodes", str(nodes), "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    own = [() if nodes == 1 else (*place, "--node-rank", str(node)) for node in range(nodes)]
    return [BackgroundTrainer(output, data, *options, *node, name="killed") for node in own]


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl that each repetition of a run has, without their times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{**row, "time": None} for row in rows if row["kind"] not in _OF_ONE_RUN]


def assert_no_line_lost(output: str) -> None:
    """Check that each tag's lines are numbered without a gap. The last line has these counts."""
    numbers: dict[str, list[int]] = {}
    for tag, number, _ in _TAG.findall(output):
        numbers.setdefault(tag, []).append(int(number))
    for tag, own in numbers.items():
        assert own == list(range(1, len(own) + 1)), (tag, own)
    counts = {tag.split()[1]: len(own) for tag, own in numbers.items() if tag.startswith("rank ")}
    (ended,) = re.findall(r'ended lines="([^"]*)"', output)
    assert dict(pair.split(":") for pair in ended.split()) == {rank: str(count) for rank, count in counts.items()}


def assert_same_run(one: Path, two: Path, *, last_step: int) -> None:
    """Check that two runs left the same metrics, the same bytes of state, and the same values in the manifest."""
    assert _metrics(one) == _metrics(two)
    checkpoint, other_checkpoint = (run / f"checkpoints/step-{last_step:09d}" for run in (one, two))
    states = [(folder / "state.safetensors").read_bytes() for folder in (checkpoint, other_checkpoint)]
    assert states[0] == states[1]
    assert _manifest_values(checkpoint) == _manifest_values(other_checkpoint)
    for name in ("best", "last"):
        # Compare by name: safetensors writes the tensors in no fixed order.
        weights, other_weights = (load_file(run / f"checkpoints/{name}.safetensors") for run in (one, two))
        assert weights.keys() == other_weights.keys()
        assert all(weights[key].equal(other_weights[key]) for key in weights)


def _manifest_values(checkpoint: Path) -> Any:
    content = read_manifest(checkpoint).content
    return json.loads(
        json.dumps({key: content[key] for key in ("state", "progress", "arithmetic")}),
        object_hook=lambda table: {key: value for key, value in table.items() if key not in WALL_CLOCK},
    )
