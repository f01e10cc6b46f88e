"""The supervisor's signals, with real processes: they reach every worker, and a stop that all answer is resumable."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.local.supervisor_process import STUBBORN, WAIT, Node, answering, until


@pytest.mark.parametrize(
    ("number", "codes", "expected"),
    [(signal.SIGTERM, (75, 75), 75), (signal.SIGINT, (75, 0), 75), (signal.SIGTERM, (0, 0), 0)],
)
def test_a_stop_that_all_workers_answer_is_resumable(
    node: Node, number: signal.Signals, codes: tuple[int, int], expected: int
) -> None:
    ready = [node.folder / f"ready{rank}" for rank in range(2)]
    process = node.start(*[answering(path, code) for path, code in zip(ready, codes, strict=True)])
    for path in ready:
        until(path)
    process.send_signal(number)
    ended = node.end(process)
    assert ended.exit_code == expected
    assert ended.of("rank 0 cpu:0") == ["saved"]
    assert ended.of("node 0")[0] == f"received {number.name}: the workers have 600 s to stop"
    assert len(ended.of("node 0")) == 2


def test_a_worker_that_had_not_begun_to_train_has_nothing_to_save(node: Node) -> None:
    ready = node.folder / "ready"
    process = node.start(
        answering(ready, 75),
        WAIT.format(str(ready)) + f"pathlib.Path({str(ready)!r} + '1').write_text('1'); time.sleep(1000)",
    )
    until(node.folder / "ready1")
    process.send_signal(signal.SIGTERM)
    ended = node.end(process)
    assert ended.exit_code == 75
    assert not [line for line in ended.lines if "failed" in line]


LOSING_ITS_PEER = (
    "import signal, sys\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open({!r}).read()\n"  # ends when the peer does
    "print({!r}); sys.exit(1)"
)


@pytest.mark.parametrize("lag_s", [0.0, 0.5])
@pytest.mark.parametrize(
    ("words", "expected"),
    [("error Connection closed by peer [127.0.0.1]:29500", 75), ("error val/a.JPEG cannot be decoded", 1)],
)
def test_peers_that_only_lost_a_stopped_worker_do_not_make_the_stop_a_failure(
    node: Node, words: str, expected: int, lag_s: float
) -> None:
    ready, pipe = node.folder / "ready", node.folder / "connection"
    os.mkfifo(pipe)
    unbegun = (
        f"import pathlib, time; connection = open({str(pipe)!r}, 'w')\n"
        f"pathlib.Path({str(ready)!r}).write_text('1'); time.sleep(1000)"
    )
    process = node.start(LOSING_ITS_PEER.format(str(pipe), words), unbegun, lag_s=lag_s)
    until(ready)
    process.send_signal(signal.SIGTERM)
    ended = node.end(process)
    assert ended.exit_code == expected
    if expected == 1:
        assert ended.lines[-1].endswith(f'cause="stopped by SIGTERM; {words}"')


def test_a_worker_that_somebody_else_ends_has_not_stopped_as_it_was_told(node: Node) -> None:
    ended = node.run("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert ended.exit_code == 1
    assert ended.lines[-1].endswith('failed rank=0 device=cpu:0 cause="killed by SIGTERM"')


@pytest.mark.parametrize(("grace_s", "signals"), [(0.2, 1), (600.0, 2)])
def test_a_stubborn_worker_is_killed_after_the_grace_or_at_the_second_signal(
    node: Node, grace_s: float, signals: int
) -> None:
    ready = node.folder / "ready"
    process = node.start(STUBBORN.format(str(ready)), grace_s=grace_s)
    until(ready)
    assert process.stdout is not None
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)  # two signals at the same moment are one
    ended = node.end(process)
    assert ended.exit_code == 1
    assert "killing rank=0: still running" in ended.of("node 0")
    assert ended.lines[-1].endswith('cause="stopped by SIGTERM; did not save in time"')


def test_sigusr1_reaches_every_worker(node: Node) -> None:
    ready = [node.folder / f"ready{rank}" for rank in range(2)]
    process = node.start(*[answering(path, 75) for path in ready])
    for path in ready:
        until(path)
    process.send_signal(signal.SIGUSR1)
    for rank in range(2):
        while b"usr1" not in node.log(rank).read_bytes():
            time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ended = node.end(process)
    assert [ended.of(f"rank {rank} cpu:{rank}") for rank in range(2)] == [["usr1", "saved"]] * 2


def test_a_worker_that_does_not_listen_yet_lives_and_hears_sigusr1_when_it_does(node: Node) -> None:
    ready, go = node.folder / "ready", node.folder / "go"
    early = f"import pathlib\npathlib.Path({str(ready)!r}).write_text('1')\n" + WAIT.format(str(go))
    process = node.start(early + answering(node.folder / "listening", 75))
    until(ready)
    process.send_signal(signal.SIGUSR1)
    # Signals of two numbers arrive in no certain order: the child has to be seen to have got it.
    child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()
    while int(re.findall(r"(?m)^ShdPnd:\s*(\w+)", Path(f"/proc/{child}/status").read_text())[0], 16) == 0:
        time.sleep(0.01)
    go.write_text("1")
    while b"usr1" not in node.log(0).read_bytes():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert node.end(process).exit_code == 75
