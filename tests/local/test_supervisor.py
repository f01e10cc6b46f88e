"""The supervisor's promises, with real processes: no line lost, the true first cause, nobody left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import TrainerError
from trainer.supervisor import WorkerCommand, supervise
from trainer.supervisor.lines import LINE_LIMIT, Tagger

# The supervisor in a process of its own, so that it can be signalled, killed, and given any stdout.
SUPERVISOR = """
import json, os, sys, time
from pathlib import Path
from trainer.supervisor import WorkerCommand, loop, supervise
from trainer.supervisor.worker import WorkerProcess
spec = json.loads(sys.argv[1])
signal = WorkerProcess.signal
# As on a busy machine, which goes on with something else: what a signal brings about is there before the next look.
WorkerProcess.signal = lambda worker, number: (signal(worker, number), time.sleep(spec["lag_s"]))
for name, value in spec["constants"].items():
    setattr(loop, name, value)
commands = [WorkerCommand(r, f"cpu:{r}", tuple(a), os.environ, Path(l)) for r, (a, l) in enumerate(spec["commands"])]
outcome = supervise(commands, stdout=sys.stdout.buffer, node_rank=0, grace_s=spec["grace_s"])
sys.exit(outcome.exit_code)
"""
WAIT = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(.01)\n"
# A worker begins with the signal blocked.
UNBLOCK = "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})\n"


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: bytes
    logs: tuple[bytes, ...]

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode(errors="surrogateescape").splitlines()

    def of(self, tag: str) -> list[str]:
        """The text of the lines with this tag, whose numbers have to count from 1 without a gap."""
        found = re.findall(rb"(?m)^\[" + tag.encode() + rb" #(\d+)\] (.*)$", self.stdout)
        assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
        return [text.decode(errors="surrogateescape") for _, text in found]


class Node:
    """Starts supervisors for a test, and leaves none of their processes behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.log"

    def start(
        self,
        *scripts: str,
        grace_s: float = 600.0,
        stdout: int = subprocess.PIPE,
        logs: dict[int, Path] | None = None,
        lag_s: float = 0.0,
        **constants: float,
    ) -> subprocess.Popen[bytes]:
        """`lag_s` is how long a busy machine does something else whenever the supervisor has sent a signal."""
        files = [(logs or {}).get(rank, self.log(rank)) for rank in range(len(scripts))]
        argv = [[sys.executable, "-u", "-c", script] for script in scripts]
        commands = [(a, str(file)) for a, file in zip(argv, files, strict=True)]
        spec = json.dumps({"commands": commands, "grace_s": grace_s, "lag_s": lag_s, "constants": constants})
        # PYTHONUNBUFFERED would make every test of last words pass, whatever the worker's command line says.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, spec], stdout=stdout, env=environ)
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        output, _ = process.communicate()
        logs = [self.log(rank) for rank in range(99) if self.log(rank).is_file()]
        return Ended(process.returncode, output or b"", tuple(log.read_bytes() for log in logs))

    def run(self, *scripts: str, **options: Any) -> Ended:
        return self.end(self.start(*scripts, **options))

    def stop(self) -> None:
        for process in self._started:
            process.kill()  # no more than a no-op where `end` has waited for it
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def until(path: Path) -> str:
    """The content of a file that a worker writes to say how far it is."""
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


# Lines


def test_no_line_of_many_workers_is_lost_torn_or_mixed(node: Node) -> None:
    script = (
        "import sys\n"
        "for i in range(20000): (sys.stdout if i % 7 else sys.stderr).write(f'{i} ' + 'x' * (i % 150) + '\\n')"
    )
    ended = node.run(*[script] * 4)
    assert ended.exit_code == 0
    for rank in range(4):
        assert ended.of(f"rank {rank} cpu:{rank}") == [f"{i} " + "x" * (i % 150) for i in range(20000)]
        mine = [line for line in ended.stdout.splitlines() if line.startswith(b"[rank %d " % rank)]
        assert ended.logs[rank].splitlines() == mine
    assert len(ended.lines) == 80001


def test_the_node_counts_every_ranks_lines_at_the_end_and_the_cause_still_comes_last(node: Node) -> None:
    printed = node.folder / "printed"
    lines = f"import pathlib\nprint('one')\nprint('two')\npathlib.Path({str(printed)!r}).write_text('1')"
    # Else the failure of one could stop the other before it has printed.
    ended = node.run(lines, WAIT.format(str(printed)) + "raise SystemExit(2)")
    assert ended.of("node 0")[-2] == 'ended lines="0:2 1:0" outcome=failed'
    assert "failed rank=1" in ended.lines[-1]


LAST_WORDS = {
    "print then SIGKILL": ("import os; print('last words', end=''); os.kill(os.getpid(), 9)", "last words", "SIGKILL"),
    "segfault": (
        "import ctypes, faulthandler; faulthandler.enable(); print('last words'); ctypes.string_at(0)",
        "Fatal Python error: Segmentation fault",
        "SIGSEGV",
    ),
    "os._exit": ("import os; print('last words', end=''); os._exit(3)", "last words", "exit code 3: last words"),
    "C printf": (
        "import ctypes, os; ctypes.CDLL(None).printf(b'from C'); os.kill(os.getpid(), 9)",
        "from C",
        "SIGKILL",
    ),
    "C++ terminate": (
        "import ctypes; ctypes.CDLL('libstdc++.so.6')._ZSt9terminatev()",
        "terminate called without an active exception",
        "SIGABRT",
    ),
    "warning": (
        "import warnings; warnings.warn('beware'); raise SystemExit(2)",
        "<string>:1: UserWarning: beware",
        "exit code 2",
    ),
    "traceback": (
        "raise ValueError('no such thing')",
        "Traceback (most recent call last):",
        "exit code 1: ValueError: no such thing",
    ),
}


@pytest.mark.parametrize("death", LAST_WORDS)
def test_last_words_arrive(node: Node, death: str) -> None:
    script, words, cause = LAST_WORDS[death]
    ended = node.run(script)
    assert words in ended.of("rank 0 cpu:0")
    assert words.encode() in ended.logs[0]
    assert cause in ended.lines[-1]


def test_bytes_that_are_not_text_pass_as_they_are(node: Node) -> None:
    ended = node.run(r"import sys; sys.stdout.buffer.write(b'\xff\x00\xc3\nabc')")
    assert ended.stdout.startswith(b"[rank 0 cpu:0 #1] \xff\x00\xc3\n[rank 0 cpu:0 #2] abc\n")
    assert ended.stdout.startswith(ended.logs[0])


def test_a_progress_bar_becomes_one_line_per_state() -> None:
    tagger = Tagger("t")
    fed = [tagger.feed(chunk) for chunk in (b"\r 10%\r", b" 20%", b"\r 30%\r", b"\ndone\r", b"\n\r\n50%\r")]
    assert b"".join([*fed, tagger.close()]) == b"".join(
        b"[t #%d] %b\n" % (number, text)
        for number, text in enumerate([b" 10%", b" 20%", b" 30%", b"done", b"", b"50%"], 1)
    )
    assert fed[0] + fed[1] != b""  # shown while the bar still moves


def test_a_line_without_an_end_is_split_and_loses_nothing() -> None:
    tagger = Tagger("t")
    out = b"".join([tagger.feed(b"x" * 65536) for _ in range(40)]) + tagger.close()
    lines = out.splitlines()
    assert [len(line.split(b"] ", 1)[1]) for line in lines] == [LINE_LIMIT, LINE_LIMIT, 8 * 65536]


def test_chunks_cut_anywhere_give_the_same_lines() -> None:
    text = b"one\n\ntwo\r\nthree\rfour\n error \nerror five\nsix"
    for size in range(1, len(text)):
        tagger = Tagger("t")
        out = b"".join([tagger.feed(text[i : i + size]) for i in range(0, len(text), size)]) + tagger.close()
        assert [line.split(b"] ", 1)[1] for line in out.splitlines()] == [
            b"one", b"", b"two", b"three", b"four", b" error ", b"error five", b"six"
        ]  # fmt: skip
        assert (tagger.error_line, tagger.last_line) == (b"error five", b"six")


# Ends


def test_a_grandchild_that_keeps_the_pipe_open_does_not_hold_the_exit_and_does_not_survive(node: Node) -> None:
    pid = node.folder / "pid"
    script = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sh', '-c', 'echo from the child; exec sleep 1000'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "import time; time.sleep(.2); print('done')"
    )
    ended = node.run(script)
    assert ended.exit_code == 0
    assert ended.of("rank 0 cpu:0") == ["from the child", "done"]
    assert is_gone(int(pid.read_text()))


def test_a_grandchild_in_a_session_of_its_own_does_not_hold_the_exit(node: Node) -> None:
    pid = node.folder / "pid"
    script = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); print('done')"
    )
    ended = node.run(script, DRAIN_S=0.1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert (ended.exit_code, ended.of("rank 0 cpu:0")) == (0, ["done"])


def test_workers_and_their_children_do_not_outlive_a_killed_supervisor(node: Node) -> None:
    pids = [node.folder / f"pids{rank}" for rank in range(2)]
    script = (
        "import os, pathlib, subprocess, time\n"
        "from trainer.supervisor import die_with_supervisor\n"
        "die_with_supervisor()\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "pathlib.Path({!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(1000)"
    )
    process = node.start(*[script.format(str(path)) for path in pids])
    left = [int(pid) for path in pids for pid in until(path).split()]
    assert not any(is_gone(pid) for pid in left)
    process.kill()
    process.wait()
    while not all(is_gone(pid) for pid in left):
        time.sleep(0.01)


def test_the_first_cause_is_the_last_line_and_the_others_are_stopped(node: Node) -> None:
    ready = node.folder / "ready"
    waiting = f"import pathlib, time; pathlib.Path({str(ready)!r}).write_text('1'); time.sleep(1000)"
    dying = WAIT.format(str(ready)) + "import os; os.kill(os.getpid(), 9)"
    ended = node.run(waiting, dying)
    assert ended.exit_code == 1
    assert re.fullmatch(
        r'\[node 0 #\d+\] failed rank=1 device=cpu:1 cause="killed by SIGKILL \(out of memory\?\)"', ended.lines[-1]
    )


@pytest.mark.parametrize("words_first", [True, False])
def test_a_worker_that_only_lost_its_peer_is_not_the_cause_though_it_exits_first(node: Node, words_first: bool) -> None:
    pipe = node.folder / "connection"
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
    ended = node.run(peer, first + "raise SystemExit(6)", SETTLE_S=60)
    assert ended.exit_code == 6
    assert ended.lines[-1].endswith('failed rank=1 device=cpu:1 cause="loss is not finite at step 7"')


def test_a_reason_stays_the_cause_when_the_interpreter_aborts_on_its_way_out(node: Node) -> None:
    ended = node.run("import os; print('error loss is not finite'); os.abort()", "import time; time.sleep(1000)")
    assert ended.exit_code == 1
    assert ended.lines[-1].endswith('failed rank=0 device=cpu:0 cause="loss is not finite"')


def test_an_error_that_the_worker_went_on_from_is_not_the_cause(node: Node) -> None:
    ended = node.run("print('error in one image')\nfor i in range(100): print(i)\nraise SystemExit(3)")
    assert ended.lines[-1].endswith('cause="exit code 3: 99"')


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (6, 6), (3, 1), (75, 75), (0, 0)])
def test_the_exit_code_is_the_failing_workers_where_it_means_something(node: Node, code: int, expected: int) -> None:
    ended = node.run(f"print('error \"this\" one'); raise SystemExit({code})", "pass")
    assert ended.exit_code == expected
    last = {0: "outcome=succeeded", 75: "outcome=resumable"}
    assert ended.lines[-1].endswith(last.get(code, r'failed rank=0 device=cpu:0 cause="\"this\" one"'))


STUBBORN = (
    "import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path({!r}).write_text('1')\ntime.sleep(1000)"
)


def test_a_worker_that_does_not_stop_after_anothers_failure_is_killed(node: Node) -> None:
    ready = str(node.folder / "ready")
    ended = node.run(STUBBORN.format(ready), WAIT.format(ready) + "raise SystemExit(2)", STOP_S=0.1)
    assert ended.exit_code == 2
    assert "killing rank=0: still running" in ended.of("node 0")
    assert "exit code 2, and said nothing" in ended.lines[-1]


def test_a_worker_that_has_been_frozen_does_not_hold_the_end(node: Node) -> None:
    ready = str(node.folder / "ready")
    frozen = (
        f"import os, pathlib, signal; pathlib.Path({ready!r}).write_text('1'); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    ended = node.run(frozen, WAIT.format(ready) + "print('error no data'); raise SystemExit(1)", STOP_S=0.1)
    assert ended.exit_code == 1
    assert "killing rank=0: still running" in ended.of("node 0")
    assert ended.lines[-1].endswith('failed rank=1 device=cpu:1 cause="no data"')


def test_a_worker_that_stays_after_the_others_have_stopped_resumably_is_stopped(node: Node) -> None:
    ended = node.run("import time; time.sleep(1000)", "raise SystemExit(75)", grace_s=0.1)
    assert ended.exit_code == 1
    assert "still running 0.1 s after rank=1 device=cpu:1 had stopped" in ended.lines[-1]


def test_a_worker_that_cannot_be_started_is_one_line_and_leaves_nobody(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(1000)"
    good = WorkerCommand(0, "cpu:0", (sys.executable, "-c", script), os.environ, tmp_path / "0.log")
    bad = WorkerCommand(1, "cpu:1", (str(tmp_path / "none"),), os.environ, tmp_path / "1.log")
    before, mask = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with (
        pytest.raises(TrainerError, match=r"worker of rank 1 cannot be started: No such file or directory: .*none"),
        (tmp_path / "out").open("wb") as stdout,
    ):
        supervise([good, bad], stdout=stdout, node_rank=0, grace_s=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    # The started one has been killed and reaped; this process may have children of other tests.
    assert not [name for name in Path("/proc").glob("[0-9]*/cmdline") if str(pid).encode() in _read(name)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has just ended
        return b""


# Signals


def answering(ready: Path, code: int) -> str:
    return (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit({code})))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('usr1'))\n"
        f"{UNBLOCK}"
        f"pathlib.Path({str(ready)!r}).write_text('1')\n"
        "while True: time.sleep(.02)"
    )


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


# Outputs


MANY = "for i in range(30000): print(i, 'x' * 100)"


def test_a_slow_reader_loses_nothing_and_signals_are_still_handled(node: Node) -> None:
    got, ready = node.folder / "got", node.folder / "ready"
    script = (
        "import pathlib, signal\n"
        f"signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path({str(got)!r}).write_text('1'))\n"
        f"{UNBLOCK}"
        f"pathlib.Path({str(ready)!r}).write_text('1')\n" + MANY
    )
    process = node.start(script)
    until(ready)
    size = -1
    while size != (size := node.log(0).stat().st_size) or not size:  # until the worker waits for its reader
        time.sleep(0.2)
    assert size < 3_000_000
    process.send_signal(signal.SIGUSR1)
    until(got)
    ended = node.end(process)
    assert ended.exit_code == 0
    assert ended.of("rank 0 cpu:0") == [f"{i} " + "x" * 100 for i in range(30000)]


def test_a_stop_is_not_held_up_by_a_reader_that_has_gone_to_sleep(node: Node) -> None:
    ready = node.folder / "ready"
    process = node.start(answering(ready, 75).replace("while True", MANY + "\nwhile True"), FLUSH_S=0.1)
    until(ready)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert b"saved" in node.log(0).read_bytes()


def test_a_stdout_without_a_reader_leaves_the_files_and_says_so_once(node: Node) -> None:
    reading, writing = os.pipe()
    process = node.start(MANY, stdout=writing)
    os.close(writing)
    os.close(reading)
    ended = node.end(process)
    assert ended.exit_code == 0
    assert ended.logs[0].count(b"stdout cannot be written: Broken pipe") == 1
    assert len(ended.logs[0].splitlines()) == 30002


def test_a_full_stdout_leaves_the_files_and_the_cause_is_in_them(node: Node) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = node.run(MANY + "\nraise SystemExit(2)", stdout=full.fileno())
    assert ended.exit_code == 2
    assert ended.logs[0].count(b"stdout cannot be written: No space left on device") == 1
    assert b"failed rank=0" in ended.logs[0].splitlines()[-1]


@pytest.mark.parametrize(
    ("log", "reason"), [("/dev/full", "No space left on device"), ("no/folder/x.log", "No such file")]
)
def test_a_log_file_that_cannot_be_written_is_said_once_and_the_lines_go_on(node: Node, log: str, reason: str) -> None:
    ended = node.run(MANY, "print('fine')", logs={0: node.folder / log})
    assert ended.exit_code == 0
    assert len(ended.of("rank 0 cpu:0")) == 30000
    said, _ = ended.of("node 0")
    assert "log of rank=0 cannot be written: " + reason in said


def test_an_earlier_runs_log_is_added_to(node: Node) -> None:
    node.log(0).write_text("an earlier attempt\n")
    assert node.run("print('now')").logs[0] == b"an earlier attempt\n[rank 0 cpu:0 #1] now\n"
