"""A whole trainer that is frozen, taken over and woken up writes no byte: not to checkpoints, metrics or logs.

PNAS_TEST_FREEZES sets how often; the moments are random, and the seed is printed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe

FREEZES = int(os.environ.get("PNAS_TEST_FREEZES", "1"))
LENGTH = ("--epochs", "2", "--steps", "12", "--checkpoint-every", "2", "--log-interval", "1", "--npus", "2")


@contextmanager
def _ended(running: BackgroundTrainer) -> Iterator[BackgroundTrainer]:
    try:
        yield running
    finally:
        with suppress(OSError):
            _signal_all(running, signal.SIGKILL)


def _signal_all(running: BackgroundTrainer, number: int) -> None:
    """Signal a trainer and its workers; a paused node or container stops all of them."""
    for worker in running.workers():
        os.kill(worker, number)
    running.signal(number)


def _files(run: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the inode, the time of the last change and the content of each file."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files
    }


def _pretend_that_the_owner_is_gone(run: Path) -> None:
    """Give the lock the process id of a process that has ended: a frozen one on this machine is alive."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    lock = run / "run.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "pid": process.pid, "process_start": "0:0"}))


def test_an_owner_that_was_frozen_and_is_woken_after_the_take_over_writes_nothing(
    few_digits: Path, tmp_path: Path
) -> None:
    seed = time.time_ns()
    sys.stdout.write(f"seed {seed}\n")
    moments = random.Random(seed)
    undisturbed = train(tmp_path, *recipe(*LENGTH), data=few_digits)
    assert undisturbed.code == 0, undisturbed.stdout + undisturbed.stderr
    for freeze in range(FREEZES):
        name = f"run{freeze}"
        run, words = tmp_path / name, (*LENGTH, "--resume", "auto")
        with _ended(BackgroundTrainer(tmp_path, few_digits, *words, name=name)) as owner:
            assert owner.wait_for(lambda output: "] step " in output)
            time.sleep(moments.uniform(0, 0.8))
            _signal_all(owner, signal.SIGSTOP)
            _pretend_that_the_owner_is_gone(run)
            with _ended(BackgroundTrainer(tmp_path, few_digits, *words, name=name)) as successor:
                assert successor.wait_for(lambda output: "] step " in output), successor.output
                _signal_all(successor, signal.SIGSTOP)
                before = _files(run)
                _signal_all(owner, signal.SIGCONT)
                assert owner.wait() == 6, owner.output
                assert _files(run) == before, owner.output
                assert "lost to process" in owner.output
                _signal_all(successor, signal.SIGCONT)
                assert successor.wait() == 0, successor.output
        assert_same_run(run, undisturbed.run, last_step=24)
