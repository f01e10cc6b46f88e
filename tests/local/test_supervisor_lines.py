"""The supervisor loses no line: neither last words, nor any bytes, nor lines without a reader or without a disk."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tests.local.supervisor_process import (
    UNBLOCK_SIGUSR1,
    WAIT_FOR_FILE,
    SupervisorRunner,
    signal_handling_script,
    wait_for_file,
)
from trainer.supervisor.output import LINE_LIMIT, Tagger


def test_no_line_of_many_workers_is_lost_torn_or_mixed(supervisors: SupervisorRunner) -> None:
    script = (
        "import sys\n"
        "for i in range(20000): (sys.stdout if i % 7 else sys.stderr).write(f'{i} ' + 'x' * (i % 150) + '\\n')"
    )
    result = supervisors.run(*[script] * 4)
    assert result.exit_code == 0
    for rank in range(4):
        assert result.texts(f"rank {rank} cpu:{rank}") == [f"{i} " + "x" * (i % 150) for i in range(20000)]
        lines = [line for line in result.stdout.splitlines() if line.startswith(b"[rank %d " % rank)]
        assert result.logs[rank].splitlines() == lines
    assert len(result.lines) == 80001


def test_the_node_counts_every_ranks_lines_at_the_end_and_the_cause_still_comes_last(
    supervisors: SupervisorRunner,
) -> None:
    printed = supervisors.folder / "printed"
    lines = f"import pathlib\nprint('one')\nprint('two')\npathlib.Path({str(printed)!r}).write_text('1')"
    # Without the wait, the failure of one worker could stop the other before it has printed.
    result = supervisors.run(lines, WAIT_FOR_FILE.format(str(printed)) + "raise SystemExit(2)")
    assert result.texts("node 0")[-2] == 'ended lines="0:2 1:0" outcome=failed'
    assert "failed rank=1" in result.lines[-1]


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
def test_last_words_arrive(supervisors: SupervisorRunner, death: str) -> None:
    script, words, cause = LAST_WORDS[death]
    result = supervisors.run(script)
    assert words in result.texts("rank 0 cpu:0")
    assert words.encode() in result.logs[0]
    assert cause in result.lines[-1]


def test_bytes_that_are_not_text_pass_unchanged(supervisors: SupervisorRunner) -> None:
    result = supervisors.run(r"import sys; sys.stdout.buffer.write(b'\xff\x00\xc3\nabc')")
    assert result.stdout.startswith(b"[rank 0 cpu:0 #1] \xff\x00\xc3\n[rank 0 cpu:0 #2] abc\n")
    assert result.stdout.startswith(result.logs[0])


def test_a_progress_bar_becomes_one_line_per_state() -> None:
    tagger = Tagger("t")
    blocks = [tagger.feed(chunk) for chunk in (b"\r 10%\r", b" 20%", b"\r 30%\r", b"\ndone\r", b"\n\r\n50%\r")]
    assert b"".join([*blocks, tagger.close()]) == b"".join(
        b"[t #%d] %b\n" % (number, text)
        for number, text in enumerate([b" 10%", b" 20%", b" 30%", b"done", b"", b"50%"], 1)
    )
    assert blocks[0] + blocks[1] != b""  # shown while the bar still moves


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


MANY = "for i in range(30000): print(i, 'x' * 100)"


def test_a_slow_reader_loses_nothing_and_signals_are_still_handled(supervisors: SupervisorRunner) -> None:
    answered, ready = supervisors.folder / "answered", supervisors.folder / "ready"
    script = (
        "import pathlib, signal\n"
        f"signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path({str(answered)!r}).write_text('1'))\n"
        f"{UNBLOCK_SIGUSR1}"
        f"pathlib.Path({str(ready)!r}).write_text('1')\n" + MANY
    )
    process = supervisors.start(script)
    wait_for_file(ready)
    size = -1
    while size != (size := supervisors.log(0).stat().st_size) or not size:  # until the worker waits for its reader
        time.sleep(0.2)
    assert size < 3_000_000
    process.send_signal(signal.SIGUSR1)
    wait_for_file(answered)
    result = supervisors.finish(process)
    assert result.exit_code == 0
    assert result.texts("rank 0 cpu:0") == [f"{i} " + "x" * 100 for i in range(30000)]


def test_a_reader_that_stopped_reading_does_not_delay_a_stop(supervisors: SupervisorRunner) -> None:
    ready = supervisors.folder / "ready"
    process = supervisors.start(
        signal_handling_script(ready, 75).replace("while True", MANY + "\nwhile True"), flush_s=0.1
    )
    wait_for_file(ready)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert b"saved" in supervisors.log(0).read_bytes()


def test_lines_go_to_the_files_if_stdout_has_no_reader_and_one_line_says_so(supervisors: SupervisorRunner) -> None:
    reading, writing = os.pipe()
    process = supervisors.start(MANY, stdout=writing)
    os.close(writing)
    os.close(reading)
    result = supervisors.finish(process)
    assert result.exit_code == 0
    assert result.logs[0].count(b"stdout cannot be written: Broken pipe") == 1
    assert len(result.logs[0].splitlines()) == 30002


def test_lines_and_cause_go_to_the_files_if_stdout_is_full(supervisors: SupervisorRunner) -> None:
    with Path("/dev/full").open("wb") as full:
        result = supervisors.run(MANY + "\nraise SystemExit(2)", stdout=full.fileno())
    assert result.exit_code == 2
    assert result.logs[0].count(b"stdout cannot be written: No space left on device") == 1
    assert b"failed rank=0" in result.logs[0].splitlines()[-1]


@pytest.mark.parametrize(
    ("log", "reason"), [("/dev/full", "No space left on device"), ("no/folder/x.log", "No such file")]
)
def test_lines_go_on_if_a_log_file_cannot_be_written_and_one_line_says_so(
    supervisors: SupervisorRunner, log: str, reason: str
) -> None:
    result = supervisors.run(MANY, "print('fine')", logs={0: supervisors.folder / log})
    assert result.exit_code == 0
    assert len(result.texts("rank 0 cpu:0")) == 30000
    message, _ = result.texts("node 0")
    assert "log of rank=0 cannot be written: " + reason in message


def test_lines_are_shown_although_the_disk_of_their_file_does_not_answer(supervisors: SupervisorRunner) -> None:
    """A full pipe that is not read stands for the disk."""
    os.mkfifo(supervisors.log(0))
    disk = os.open(supervisors.log(0), os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(disk, fcntl.F_SETPIPE_SZ, 4096)
    process = supervisors.start("print('x' * 8000 + '\\nlast words')")
    assert process.stdout is not None
    assert any(b"last words" in line for line in process.stdout)
    os.close(disk)
    assert supervisors.finish(process).exit_code == 0


def test_lines_are_appended_to_an_earlier_log(supervisors: SupervisorRunner) -> None:
    supervisors.log(0).write_text("an earlier attempt\n")
    assert supervisors.run("print('now')").logs[0] == b"an earlier attempt\n[rank 0 cpu:0 #1] now\n"


def test_the_numbers_of_a_ranks_lines_go_on_in_its_next_process(supervisors: SupervisorRunner) -> None:
    flag = supervisors.folder / "flag"
    script = (
        f"import pathlib, sys\nflag = pathlib.Path({str(flag)!r})\n"
        "if flag.exists(): print('second'); sys.exit(3)\n"
        "flag.touch(); print('error first'); print('half a line', end=''); sys.exit(1)"
    )
    result = supervisors.run(script, groups=2)
    assert result.texts("rank 0 cpu:0") == ["error first", "half a line", "second"]
    assert result.lines[-2].endswith('ended lines="0:3" outcome=failed')
    assert result.lines[-1].endswith('cause="exit code 3: second"'), "the earlier process's words are not its cause"
    assert result.logs[0].splitlines() == [line.encode() for line in result.lines if line.startswith("[rank 0")]
