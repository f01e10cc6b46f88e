"""The end of a supervisor: its last line and its exit code give the true first cause, and no process survives."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.local.supervisor_process import IGNORE_SIGTERM, WAIT_FOR_FILE, SupervisorRunner, wait_for_file
from trainer.shared.errors import TrainerError
from trainer.supervisor import Supervisor, WorkerCommand


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie has ended."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_a_grandchild_that_keeps_the_pipe_open_does_not_delay_the_exit_and_does_not_survive(
    supervisors: SupervisorRunner,
) -> None:
    pid, said = supervisors.folder / "pid", str(supervisors.folder / "said")
    script = (
        "import subprocess\n"
        f"child = subprocess.Popen(['sh', '-c', 'echo from the child; touch {said}; exec sleep 1000'])\n"
        f"{WAIT_FOR_FILE.format(said)}"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); print('done')"
    )
    result = supervisors.run(script)
    assert result.exit_code == 0
    assert result.texts("rank 0 cpu:0") == ["from the child", "done"]
    assert is_gone(int(pid.read_text()))


def test_a_grandchild_in_another_session_does_not_delay_the_exit(supervisors: SupervisorRunner) -> None:
    pid = supervisors.folder / "pid"
    script = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); print('done')"
    )
    result = supervisors.run(script, drain_s=0.1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert (result.exit_code, result.texts("rank 0 cpu:0")) == (0, ["done"])


def test_workers_and_their_children_do_not_outlive_a_killed_supervisor(supervisors: SupervisorRunner) -> None:
    pids = [supervisors.folder / f"pids{rank}" for rank in range(2)]
    script = (
        "import os, pathlib, subprocess, time\n"
        "from trainer.supervisor import die_with_supervisor\n"
        "die_with_supervisor()\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "pathlib.Path({!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(1000)"
    )
    process = supervisors.start(*[script.format(str(path)) for path in pids])
    processes = [int(pid) for path in pids for pid in wait_for_file(path).split()]
    assert not any(is_gone(pid) for pid in processes)
    process.kill()
    process.wait()
    while not all(is_gone(pid) for pid in processes):
        time.sleep(0.01)


def test_the_first_cause_is_the_last_line_and_the_others_are_stopped(supervisors: SupervisorRunner) -> None:
    ready = supervisors.folder / "ready"
    waiting = f"import pathlib, time; pathlib.Path({str(ready)!r}).write_text('1'); time.sleep(1000)"
    dying = WAIT_FOR_FILE.format(str(ready)) + "import os; os.kill(os.getpid(), 9)"
    result = supervisors.run(waiting, dying)
    assert result.exit_code == 1
    assert re.fullmatch(
        r'\[node 0 #\d+\] failed rank=1 device=cpu:1 cause="killed by SIGKILL \(out of memory\?\)"', result.lines[-1]
    )


@pytest.mark.parametrize("words_first", [True, False])
def test_a_worker_that_only_lost_its_peer_is_not_the_cause_though_it_exits_first(
    supervisors: SupervisorRunner, words_first: bool
) -> None:
    pipe = supervisors.folder / "connection"
    os.mkfifo(pipe)
    peer = (
        f"open({str(pipe)!r}).read(); print('error Connection closed by peer [127.0.0.1]:29500'); raise SystemExit(1)"
    )
    words = "print('error loss is not finite at step 7')\n"
    first = f"import time; connection = open({str(pipe)!r}, 'w')\n"
    first += (
        words + "connection.close(); time.sleep(.1)\n"
        if words_first
        else "connection.close(); time.sleep(.1)\n" + words
    )
    result = supervisors.run(peer, first + "raise SystemExit(6)", settle_s=60)
    assert result.exit_code == 6
    assert result.lines[-1].endswith('failed rank=1 device=cpu:1 cause="loss is not finite at step 7"')


def test_a_reason_stays_the_cause_when_the_interpreter_aborts_on_its_way_out(supervisors: SupervisorRunner) -> None:
    result = supervisors.run(
        "import os; print('error loss is not finite'); os.abort()", "import time; time.sleep(1000)"
    )
    assert result.exit_code == 1
    assert result.lines[-1].endswith('failed rank=0 device=cpu:0 cause="loss is not finite"')


def test_an_error_that_the_worker_survived_is_not_the_cause(supervisors: SupervisorRunner) -> None:
    result = supervisors.run("print('error in one image')\nfor i in range(100): print(i)\nraise SystemExit(3)")
    assert result.lines[-1].endswith('cause="exit code 3: 99"')


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (6, 6), (7, 7), (3, 1), (75, 75), (0, 0)])
def test_the_exit_code_is_the_failing_workers_where_it_means_something(
    supervisors: SupervisorRunner, code: int, expected: int
) -> None:
    result = supervisors.run(f"print('error \"this\" one'); raise SystemExit({code})", "pass")
    assert result.exit_code == expected
    last = {0: "outcome=succeeded", 75: "outcome=resumable"}
    assert result.lines[-1].endswith(last.get(code, r'failed rank=0 device=cpu:0 cause="\"this\" one"'))


def test_a_worker_that_does_not_stop_after_anothers_failure_is_killed(supervisors: SupervisorRunner) -> None:
    ready = str(supervisors.folder / "ready")
    result = supervisors.run(
        IGNORE_SIGTERM.format(ready), WAIT_FOR_FILE.format(ready) + "raise SystemExit(2)", stop_s=0.1
    )
    assert result.exit_code == 2
    assert "killing rank=0: still running" in result.texts("node 0")
    assert "exit code 2, and said nothing" in result.lines[-1]


def test_a_frozen_worker_does_not_delay_the_end(supervisors: SupervisorRunner) -> None:
    ready = str(supervisors.folder / "ready")
    frozen = (
        f"import os, pathlib, signal; pathlib.Path({ready!r}).write_text('1'); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    result = supervisors.run(
        frozen, WAIT_FOR_FILE.format(ready) + "print('error no data'); raise SystemExit(1)", stop_s=0.1
    )
    assert result.exit_code == 1
    assert "killing rank=0: still running" in result.texts("node 0")
    assert result.lines[-1].endswith('failed rank=1 device=cpu:1 cause="no data"')


def test_a_worker_that_stays_after_the_others_have_stopped_resumably_is_stopped(supervisors: SupervisorRunner) -> None:
    result = supervisors.run("import time; time.sleep(1000)", "raise SystemExit(75)", grace_s=0.1)
    assert result.exit_code == 1
    assert "still running 0.1 s after rank=1 device=cpu:1 had stopped" in result.lines[-1]


def test_a_worker_that_cannot_be_started_gives_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(1000)"
    good = WorkerCommand(0, "cpu:0", (sys.executable, "-c", script), os.environ, tmp_path / "0.log")
    bad = WorkerCommand(1, "cpu:1", (str(tmp_path / "none"),), os.environ, tmp_path / "1.log")
    before, mask = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with (
        pytest.raises(TrainerError, match=r"worker of rank 1 cannot be started: No such file.*; check .*none"),
        (tmp_path / "out").open("wb") as stdout,
        Supervisor(stdout, node_rank=0) as supervisor,
    ):
        supervisor.run([good, bad], grace_s=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    # The started worker has been killed and reaped. Look for its script: other tests may have left children here.
    assert not [name for name in Path("/proc").glob("[0-9]*/cmdline") if str(pid).encode() in _read(name)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has just ended
        return b""


@pytest.mark.parametrize(("code", "expected"), [(1, 6), (0, 0)])
def test_a_failure_in_a_lost_folder_has_the_loss_as_its_cause(tmp_path: Path, code: int, expected: int) -> None:
    program = f"print('error no such file'); raise SystemExit({code})"
    worker = WorkerCommand(0, "cpu:0", (sys.executable, "-c", program), os.environ, tmp_path / "0.log")
    with (
        (tmp_path / "out").open("wb") as stdout,
        Supervisor(stdout, node_rank=0, loss=lambda: "the folder is gone") as supervisor,
    ):
        outcome = supervisor.run([worker], grace_s=1)
        supervisor.end(outcome)
    assert outcome.exit_code == expected
    lost = b'failed cause="the folder is gone"' in (tmp_path / "out").read_bytes().splitlines()[-1]
    assert lost == (code != 0)
