"""A crash is followed by another attempt in the same pod; a failure that would come again, and a stop, are not."""

import math
import os
import signal
import sys
from pathlib import Path

import pytest

from trainer.run.restarts import RestartLimit
from trainer.shared.errors import CRASHED, NO_RETRY
from trainer.supervisor import Supervisor, WorkerCommand
from trainer.supervisor.failure_cause import StopOrder, WorkerEnd, decide
from trainer.supervisor.output import Tagger
from trainer.supervisor.signals import HAND_OVER


def _end(returncode: int, *, words: bytes = b"", at: float = 1.0, told_to_stop: bool = False) -> WorkerEnd:
    tagger = Tagger("rank 0 cpu:0")
    tagger.feed(words)
    error_at = at if words else math.inf
    return WorkerEnd(0, "cpu:0", tagger, returncode, ended_at=at, error_at=error_at, told_to_stop=told_to_stop)


@pytest.mark.parametrize(
    ("returncode", "words", "crashed"),
    [
        (-signal.SIGKILL, b"", True),
        (-signal.SIGSEGV, b"", True),
        (-signal.SIGABRT, b"error the loss is not finite\n", True),
        (CRASHED, b"error RuntimeError: unknown\n", True),
        (3, b"", True),
        (1, b"", True),  # the watchdog's own backstop leaves no word
        (1, b"error the device failed (hbm Multi-bit ECC error)\n", False),
        (2, b"error --data-path /data: no such folder\n", False),
        (6, b"error run.lock: lost to process 7\n", False),
        (NO_RETRY, b"error the loss was not finite\n", False),
    ],
)
def test_only_a_failure_that_the_worker_cannot_explain_is_a_crash(returncode: int, words: bytes, crashed: bool) -> None:
    outcome = decide([_end(returncode, words=words)], stop=None)
    assert outcome.crashed is crashed
    assert outcome.exit_code == (returncode if words and not crashed else 1)


def test_a_stop_by_a_signal_is_no_crash_and_a_stop_for_another_node_is_one() -> None:
    stop = StopOrder(0.5, "stopped by SIGTERM", by_signal=True)
    killed = decide([_end(-signal.SIGKILL, told_to_stop=True)], stop=stop)
    assert (killed.exit_code, killed.crashed, killed.stopped) == (1, False, True)
    stop = StopOrder(0.5, "node 1: rank=1 device=cpu:0 has ended", by_signal=False, by_peer=True)
    stopped = decide([_end(-signal.SIGTERM, told_to_stop=True)], stop=stop)
    assert (stopped.exit_code, stopped.crashed, stopped.stopped) == (1, True, False)
    assert str(stopped.first_failure) == 'failed cause="node 1: rank=1 device=cpu:0 has ended"'


def test_restarts_are_counted_by_the_hour() -> None:
    times = iter((0.0, 1800.0, 3599.0, 3600.0, 5399.0, 5400.0))
    limit = RestartLimit(2, clock=lambda: next(times))
    assert [limit.take() for _ in range(6)] == [True, True, False, True, False, True]
    assert not RestartLimit(0).take()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, HAND_OVER])
def test_a_signal_between_two_groups_of_workers_is_not_lost(tmp_path: Path, number: signal.Signals) -> None:
    command = WorkerCommand(0, "cpu:0", (sys.executable, "-c", "input()"), os.environ, tmp_path / "0.log")
    with (tmp_path / "stdout").open("wb") as stdout, Supervisor(stdout, node_rank=0) as supervisor:
        os.kill(os.getpid(), number)
        stopped = supervisor.run([command], grace_s=600)
        assert stopped.exit_code == 75
        assert supervisor.stop_requested
        assert not supervisor.wait(stdout.fileno(), timeout_s=0)
