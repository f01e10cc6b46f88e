"""Why a program cannot be loaded is one line that names the cause; what it prints is whole, or an error."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.shared.program import describe_loading_error

UNLIMITED, LIMITED = -1, 1000 << 20
NUMPY = """

IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!

Original error was: libopenblas.so: failed to map segment from shared object
"""


@pytest.mark.parametrize(
    ("error", "limit", "text"),
    [
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), UNLIMITED, "has no yaml: use the Python that"),
        (ImportError("libx.so: cannot open shared object file"), LIMITED, "file; install the packages of pnas again"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            LIMITED,
            "has too little memory (libtorch_cpu.so: failed to map segment from shared object); this "
            "process can use only 1000 MiB (ulimit -v): give it more",
        ),
        (ImportError(NUMPY), UNLIMITED, "(Original error was: libopenblas.so: failed to map segment from shared "),
        (MemoryError(), UNLIMITED, "has too little memory (MemoryError); give it more"),
    ],
)
def test_a_loading_error_is_one_line_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, error: ImportError | MemoryError, limit: int, text: str
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    line = describe_loading_error(error)
    assert line.startswith(sys.executable)
    assert text in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", [ModuleNotFoundError, ImportError])
def test_a_missing_part_of_this_software_is_a_fault_of_it(kind: type[ImportError]) -> None:
    with pytest.raises(kind):
        describe_loading_error(kind("cannot import name", name="trainer.nope"))


INTERRUPTED_IMPORT = """
class Interrupt:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt

class Owner:
    field = Interrupt()
"""


def test_an_interrupt_while_classes_are_made_is_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IMPORT)
    program = "from trainer.shared.program import run_program; run_program('interrupted')"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "")


PRINT = """
import sys
from trainer.shared.program import write_whole_texts
write_whole_texts()
{}
"""
BYTES = 100_000


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("statement", ['sys.{}.write("x" * 100_000 + "\\n")', 'sys.{}.buffer.write(b"x" * 100_000)'])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_text_of_which_the_system_takes_a_part_is_an_error(
    tmp_path: Path, stream: str, statement: str, unbuffered: str
) -> None:
    """A limit on the size of a file stands for a full disk: the system writes a part, and fails at the next write."""
    program = PRINT.format(f"{statement.format(stream)}; sys.{stream}.flush()")
    with (tmp_path / "out").open("wb") as out, (tmp_path / "other").open("wb") as other:
        process = subprocess.run(
            [sys.executable, "-c", f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{program}"],
            stdout=out if stream == "stdout" else other,
            stderr=out if stream == "stderr" else other,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES // 2, BYTES // 2)),
            check=False,
        )
    assert process.returncode != 0
    assert (tmp_path / "out").stat().st_size == BYTES // 2


def test_a_line_of_an_unbuffered_program_does_not_wait() -> None:
    program = PRINT.format('print("one"); sys.stdin.read()')
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        process.communicate()


INTERRUPTED = """
import signal, sys, types
from trainer.worker.__main__ import main

def write_to_a_full_pipe():
    signal.signal(signal.SIGALRM, lambda *_: sys.stderr.write("signal\\n"))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    sys.stdout.write("x" * 3_000_000 + "\\nlast words")
    os._exit(0)

sys.modules["trainer.worker.run"] = types.SimpleNamespace(main=write_to_a_full_pipe)
main()
"""


def test_a_signal_in_the_middle_of_a_long_line_of_a_worker_costs_no_byte() -> None:
    """The supervisor reads more slowly than the worker writes, and the worker is asked to stop."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", f"import os{INTERRUPTED}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        signals = [worker.stderr.readline() for _ in range(3)]
        written, _ = worker.communicate()
    assert signals == [b"signal\n"] * 3
    assert written == b"x" * 3_000_000 + b"\nlast words"
