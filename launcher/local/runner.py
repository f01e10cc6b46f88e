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

from launcher.local import records
from trainer.shared.processes import identify

_TICK_S = 1.0


def main() -> int:
    """Start the job in a child; return 0 when it runs, or was cancelled before that."""
    folder = Path(sys.argv[1])
    parent_end, child_end = os.pipe()
    if os.fork():
        os.close(child_end)
        return 0 if os.read(parent_end, 1) else 1
    os.close(parent_end)
    os.setsid()
    _run(folder, child_end)
    return 0


def _run(folder: Path, parent: int) -> None:
    # The trainer saves and stops when it gets SIGTERM; an early SIGTERM waits for the trainer's start.
    early_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early_signals.append(number))
    me = identify(os.getpid())
    job = records.read_record(folder / records.JOB)
    if job is None:
        raise FileNotFoundError(folder / records.JOB)
    records.write_record(folder / records.PROCESSES, "Processes", {"runner": asdict(me), "trainer": None})
    records.reserve_record(folder / records.EXIT)
    started = time.time()
    trainer = subprocess.Popen(job["command"], cwd=job["cwd"], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, _: trainer.send_signal(number))
    if early_signals:
        trainer.send_signal(signal.SIGTERM)
    records.write_record(
        folder / records.PROCESSES,
        "Processes",
        {"runner": asdict(me), "trainer": asdict(identify(trainer.pid)), "started": started},
    )
    os.write(parent, b"1")
    os.close(parent)
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
