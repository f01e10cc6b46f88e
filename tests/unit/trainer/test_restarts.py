"""A crash is followed by another attempt in the same pod; a failure that would come again, and a stop, are not."""

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.trainer.test_run_snapshots import write
from trainer.checkpoint.writing import write_checkpoint
from trainer.records.lease import LOCK_FILE, Lease
from trainer.run import restarts
from trainer.run.attempt import Attempt, RunStarter
from trainer.run.meeting import Begin, Meeting, Report
from trainer.run.restarts import RestartLimit, run_attempts
from trainer.run.tries import JobRetries
from trainer.shared.config import TrainConfig
from trainer.shared.errors import CRASHED, NO_RETRY, NoRetryError
from trainer.supervisor import Failure, Outcome, Supervisor, WorkerCommand
from trainer.supervisor.failure_cause import StopOrder, WorkerEnd, decide
from trainer.supervisor.output import Tagger
from trainer.supervisor.signals import HAND_OVER
from trainer.topology import Topology, Worker


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


class _CrashedWorkers:
    """A supervisor whose workers crash at once, and with them the file server."""

    stop_requested = False

    def __init__(self, answers_again: str) -> None:
        self.is_away = False
        self.lines: list[str] = []
        self._answers_again = answers_again

    def run(self, *_arguments: object, **_options: object) -> Outcome:
        self.is_away = True
        return Outcome(1, Failure(0, "cpu:0", "killed by SIGKILL"), crashed=True)

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.is_away = self.is_away and not line.startswith(self._answers_again)

    def end(self, outcome: Outcome) -> None:
        self.lines.append(f"ended {outcome.exit_code}")


@pytest.mark.parametrize(
    ("answers_again", "last_lines"),
    [
        ("no restart", ["no retry: --retries 0 of this job are used up", "saved the last snapshot", "ended 7"]),
        ("never", ["warning text=", "the last snapshot cannot be saved: ", "ended 1"]),
    ],
)
def test_a_file_server_that_fails_after_a_crash_costs_the_restart_and_neither_the_record_nor_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers_again: str, last_lines: list[str]
) -> None:
    run, workers = tmp_path / "run", _CrashedWorkers(answers_again)
    for name in ("stat", "listdir"):
        monkeypatch.setattr(os, name, _failing_below(run, getattr(os, name), workers))
    _run_attempts(run, workers)
    workers.is_away = False
    assert any(line.startswith("no restart: ") and "Stale file handle" in line for line in workers.lines)
    for line, start in zip(workers.lines[-3:], last_lines, strict=True):
        assert line.startswith(start)
    is_back = answers_again != "never"
    assert (run / "checkpoints" / "step-000000020").exists() is is_back
    assert ("try_ended" in json.loads((run / "attempt.json").read_text())) is is_back


def test_an_error_of_the_system_among_the_workers_is_a_failed_try_with_its_record_and_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = _CrashedWorkers("")

    def fail(*_arguments: object, **_options: object) -> Outcome:
        raise OSError(errno.EMFILE, "Too many open files", "/dev/null")

    monkeypatch.setattr(workers, "run", fail)
    with pytest.raises(NoRetryError, match="/dev/null: Too many open files; start the run again"):
        _run_attempts(tmp_path / "run", workers)
    assert (tmp_path / "run" / "checkpoints" / "step-000000020").exists()
    assert json.loads((tmp_path / "run" / "attempt.json").read_text())["try_ended"] == "failed"


def _run_attempts(run: Path, workers: _CrashedWorkers) -> None:
    """Run the attempts of a job without retries, with a snapshot in memory."""
    memory = run.with_name("memory")
    for folder in (run, memory):
        folder.mkdir()
    (run / LOCK_FILE).write_text("the-token")
    write(memory, 20, world_size=1)
    attempt = Attempt(TrainConfig(), run, 1, None, Lease(run, "the-token"), memory)
    topology = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")
    starter = RunStarter(topology, command=(), on_note=print, on_lost=print, retries=JobRetries("uid", 0))
    run_attempts(attempt, starter, cast("Supervisor", workers), device="cpu")


def _failing_below(run: Path, call: Callable[..., Any], workers: _CrashedWorkers) -> Callable[..., Any]:
    """Return a system call that fails in a folder while the file server is away."""

    def answer(path: Any = ".", **options: Any) -> Any:
        if workers.is_away and not isinstance(path, int) and Path(path).is_relative_to(run):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return call(path, **options)

    return answer


class _MeetsOnce:
    """A rendezvous whose other node comes to the first attempt only."""

    fd, peers_end = None, ""

    def meet(self, report: Report | None, begin: Begin) -> Meeting | None:
        assert report is None, "the other node has ended"
        return begin("")

    def close(self, *, stopped: bool) -> None:
        assert not stopped


@pytest.mark.parametrize(("epochs", "crashed", "code"), [(1, True, 0), (2, True, None), (1, False, None)])
def test_a_node_whose_workers_crash_after_the_result_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, epochs: int, crashed: bool, code: int | None
) -> None:
    class Workers(_CrashedWorkers):
        def run(self, *_arguments: object, **_options: object) -> Outcome:
            write_checkpoint(run / "checkpoints", 20, {}, {"progress": {"epoch": 1, "step": 0}})
            (run / "PnasNet5Tiny_bs16_2p_acc.log").write_text("Network = PnasNet5Tiny\n")
            return Outcome(1, Failure(0, "cpu:0", "killed by SIGKILL"), crashed=crashed)

    monkeypatch.setattr(restarts, "_rendezvous", lambda *_: _MeetsOnce())
    run, workers = tmp_path / "run", Workers("")
    run.mkdir()
    (run / LOCK_FILE).write_text("the-token")
    attempt = Attempt(TrainConfig(epochs=epochs), run, 1, None, Lease(run, "the-token"))
    topology = Topology(2, 2, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")
    starter = RunStarter(topology, command=(), on_note=print, on_lost=print)
    if code is None:
        with pytest.raises(AssertionError, match="the other node has ended"):
            run_attempts(attempt, starter, cast("Supervisor", workers), device="cpu")
        return
    assert run_attempts(attempt, starter, cast("Supervisor", workers), device="cpu").exit_code == code
    assert [line for line in workers.lines if line.startswith("complete: ")]
    assert json.loads((run / "attempt.json").read_text())["try_ended"] == "done"
