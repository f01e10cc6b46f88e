"""The supervisor's signals, with real processes: they reach every worker; a stop that all workers obey is resumable."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.local.supervisor_process import (
    IGNORE_SIGTERM,
    WAIT_FOR_FILE,
    SupervisorRunner,
    signal_handling_script,
    wait_for_file,
)


@pytest.mark.parametrize(
    ("number", "codes", "expected"),
    [(signal.SIGTERM, (75, 75), 75), (signal.SIGINT, (75, 0), 75), (signal.SIGTERM, (0, 0), 0)],
)
def test_a_stop_that_all_workers_obey_is_resumable(
    supervisors: SupervisorRunner, number: signal.Signals, codes: tuple[int, int], expected: int
) -> None:
    ready = [supervisors.folder / f"ready{rank}" for rank in range(2)]
    process = supervisors.start(*[signal_handling_script(path, code) for path, code in zip(ready, codes, strict=True)])
    for path in ready:
        wait_for_file(path)
    process.send_signal(number)
    result = supervisors.finish(process)
    assert result.exit_code == expected
    assert result.texts("rank 0 cpu:0") == ["saved"]
    assert result.texts("node 0")[0] == f"received {number.name}: the workers have 600 s to stop"
    assert len(result.texts("node 0")) == 2


def test_a_worker_that_had_not_begun_to_train_has_nothing_to_save(supervisors: SupervisorRunner) -> None:
    ready = supervisors.folder / "ready"
    process = supervisors.start(
        signal_handling_script(ready, 75),
        WAIT_FOR_FILE.format(str(ready)) + f"pathlib.Path({str(ready)!r} + '1').write_text('1'); time.sleep(1000)",
    )
    wait_for_file(supervisors.folder / "ready1")
    process.send_signal(signal.SIGTERM)
    result = supervisors.finish(process)
    assert result.exit_code == 75
    assert not [line for line in result.lines if "failed" in line]


LOSING_ITS_PEER = (
    "import signal, sys\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open({!r}).read()\n"  # returns when the peer ends
    "print({!r}); sys.exit(1)"
)


@pytest.mark.parametrize("lag_s", [0.0, 0.5])
@pytest.mark.parametrize(
    ("words", "expected"),
    [("error Connection closed by peer [127.0.0.1]:29500", 75), ("error val/a.JPEG cannot be decoded", 1)],
)
def test_peers_that_only_lost_a_stopped_worker_do_not_make_the_stop_a_failure(
    supervisors: SupervisorRunner, words: str, expected: int, lag_s: float
) -> None:
    ready, pipe = supervisors.folder / "ready", supervisors.folder / "connection"
    os.mkfifo(pipe)
    waiting = (
        f"import pathlib, time; connection = open({str(pipe)!r}, 'w')\n"
        f"pathlib.Path({str(ready)!r}).write_text('1'); time.sleep(1000)"
    )
    process = supervisors.start(LOSING_ITS_PEER.format(str(pipe), words), waiting, lag_s=lag_s)
    wait_for_file(ready)
    process.send_signal(signal.SIGTERM)
    result = supervisors.finish(process)
    assert result.exit_code == expected
    if expected == 1:
        assert result.lines[-1].endswith(f'cause="stopped by SIGTERM; {words}"')


def test_a_worker_killed_from_elsewhere_is_a_failure_and_no_stop(supervisors: SupervisorRunner) -> None:
    result = supervisors.run("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert result.exit_code == 1
    assert result.lines[-1].endswith('failed rank=0 device=cpu:0 cause="killed by SIGTERM"')


def _pending(pid: int) -> int:
    """Return the signals that the kernel has not delivered to a process yet, as the bits of their numbers less one."""
    (bits,) = re.findall(r"(?m)^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return int(bits, 16)


@pytest.mark.parametrize(("grace_s", "signals"), [(0.2, 1), (600.0, 2)])
def test_a_stubborn_worker_is_killed_after_the_grace_or_at_the_second_signal(
    supervisors: SupervisorRunner, grace_s: float, signals: int
) -> None:
    ready = supervisors.folder / "ready"
    process = supervisors.start(IGNORE_SIGTERM.format(str(ready)), grace_s=grace_s)
    wait_for_file(ready)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        while _pending(process.pid):  # the second one would be lost
            time.sleep(0.001)
    result = supervisors.finish(process)
    assert result.exit_code == 1
    assert "killing rank=0: still running" in result.texts("node 0")
    assert result.lines[-1].endswith('cause="stopped by SIGTERM; did not save in time"')


def test_sigusr1_reaches_every_worker(supervisors: SupervisorRunner) -> None:
    ready = [supervisors.folder / f"ready{rank}" for rank in range(2)]
    process = supervisors.start(*[signal_handling_script(path, 75) for path in ready])
    for path in ready:
        wait_for_file(path)
    process.send_signal(signal.SIGUSR1)
    for rank in range(2):
        while b"usr1" not in supervisors.log(rank).read_bytes():
            time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    result = supervisors.finish(process)
    assert [result.texts(f"rank {rank} cpu:{rank}") for rank in range(2)] == [["usr1", "saved"]] * 2


def test_a_worker_that_does_not_listen_yet_survives_sigusr1_and_gets_it_later(supervisors: SupervisorRunner) -> None:
    ready, go = supervisors.folder / "ready", supervisors.folder / "go"
    early = f"import pathlib\npathlib.Path({str(ready)!r}).write_text('1')\n" + WAIT_FOR_FILE.format(str(go))
    process = supervisors.start(early + signal_handling_script(supervisors.folder / "listening", 75))
    wait_for_file(ready)
    process.send_signal(signal.SIGUSR1)
    # Two different signals arrive in no fixed order: wait until the kernel shows the first as pending.
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    while not _pending(child):
        time.sleep(0.01)
    go.write_text("1")
    while b"usr1" not in supervisors.log(0).read_bytes():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert supervisors.finish(process).exit_code == 75
