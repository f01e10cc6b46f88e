"""A small process that outlives the launcher: it starts the trainer, waits for it, and records how it ended.

`trainer/shared/start.py launcher.local.runner JOB_FOLDER` returns when the trainer runs and is recorded. A child goes
on in its own session, where neither the terminal's Ctrl-C nor the launcher's death reaches it. Standard output is the
job's console.log. The runner knows nothing of the trainer: the command is data.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from launcher.errors import LauncherError
from launcher.local import records
from trainer.shared.processes import identify

_TICK_S = 1.0
_STARTED = b"1"
_LONGEST_ANSWER = 1 << 12  # bytes; a pipe takes them at once


def main() -> int:
    """Start the job in a child; return 0 when it runs, or print why it does not run."""
    folder = Path(sys.argv[1])
    parent_end, child_end = os.pipe()
    if os.fork():
        os.close(child_end)
        answer = os.read(parent_end, _LONGEST_ANSWER)
        if answer == _STARTED:
            return 0
        sys.stderr.write(answer.decode("utf-8", "replace"))
        return 1
    os.close(parent_end)
    os.setsid()
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    try:
        trainer, started = _start(folder)
    except (LauncherError, OSError) as error:
        os.write(child_end, str(error).encode(errors="replace")[:_LONGEST_ANSWER])
        return 1
    os.write(child_end, _STARTED)
    os.close(child_end)
    _wait(folder, trainer, started)
    return 0


def _start(folder: Path) -> tuple["subprocess.Popen[bytes]", float]:
    """Start the trainer and record its process; return it with the time in seconds since 1970.

    Raises:
        LauncherError: a record cannot be written; no trainer runs.
        OSError: the trainer cannot be started.
    """
    # The trainer saves and stops when it gets SIGTERM; an early SIGTERM waits for the trainer's start.
    early_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early_signals.append(number))
    me = identify(os.getpid())
    job = records.read_record(folder / records.JOB)
    if job is None:
        raise FileNotFoundError(folder / records.JOB)
    records.write_record(folder / records.PROCESSES, "Processes", {"runner": asdict(me), "trainer": None})
    # A disk that fills up must leave neither a trainer that no record knows, nor a job without an end.
    for name in (records.PROCESSES, records.EXIT):
        records.reserve_record(folder / name)
    started = time.time()
    trainer = subprocess.Popen(job["command"], cwd=job["cwd"], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, _: trainer.send_signal(number))
    if early_signals:
        trainer.send_signal(signal.SIGTERM)
    values = {"runner": asdict(me), "trainer": asdict(identify(trainer.pid)), "started": started}
    try:
        records.write_record(folder / records.PROCESSES, "Processes", values)
    except LauncherError:
        trainer.kill()
        raise
    return trainer, started


def _wait(folder: Path, trainer: "subprocess.Popen[bytes]", started: float) -> None:
    """Wait for the trainer's end, and record it."""
    ended = threading.Event()
    threading.Thread(target=_record_size, args=(folder, ended), daemon=True).start()
    trainer.wait()
    ended.set()
    records.write_record(
        folder / records.EXIT, "Exit", {"returncode": trainer.returncode, "started": started, "ended": time.time()}
    )


def _record_size(folder: Path, ended: threading.Event) -> None:
    """Record each second how long the log is, so that `logs --since` finds its place in it."""
    recorded = 0
    while not ended.wait(_TICK_S):
        # A full disk must not end the process that records the job's end.
        with contextlib.suppress(OSError):
            size = (folder / records.CONSOLE).stat().st_size
            if size != recorded:
                recorded = size
                with (folder / records.CLOCK).open("ab") as clock:
                    clock.write(b"%.3f %d\n" % (time.time(), size))
