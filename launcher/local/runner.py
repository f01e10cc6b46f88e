"""A small process that outlives the launcher: it starts the trainer, waits for it, and records how it ended.

`python -m launcher.local.runner JOB_FOLDER` returns as soon as the trainer has been started and recorded;
what goes on runs in a session of its own, out of reach of the terminal's Ctrl-C and of the launcher's death. Standard
output is the job's console.log. It knows nothing of what it runs: the command is data.
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
from types import FrameType

from launcher.local import records
from trainer.shared.processes import identify

_TICK_S = 1.0


def main(folder: Path) -> int:
    """Return 0 once the job runs (or was cancelled before it could); the job itself goes on in a child."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(told, 1) else 1
    os.close(told)
    os.setsid()
    _run(folder, tell)
    return 0


def _run(folder: Path, tell: int) -> None:
    stopped = _Stop()
    me = identify(os.getpid())
    job = records.read_record(folder / records.JOB)
    if job is None:
        raise FileNotFoundError(folder / records.JOB)
    records.write_record(folder / records.PROCESSES, "Processes", {"runner": asdict(me), "trainer": None})
    records.reserve_record(folder / records.EXIT)
    started = time.time()
    trainer = subprocess.Popen(job["command"], cwd=job["cwd"], stdin=subprocess.DEVNULL)
    stopped.pass_on_to(trainer)
    records.write_record(
        folder / records.PROCESSES,
        "Processes",
        {"runner": asdict(me), "trainer": asdict(identify(trainer.pid)), "started": started},
    )
    os.write(tell, b"1")
    os.close(tell)
    over = threading.Event()
    threading.Thread(target=_keep_time, args=(folder, over), daemon=True).start()
    trainer.wait()
    over.set()
    records.write_record(
        folder / records.EXIT, "Exit", {"returncode": trainer.returncode, "started": started, "ended": time.time()}
    )


class _Stop:
    """SIGTERM goes to the trainer, which saves and stops; one that comes too early is kept for it."""

    def __init__(self) -> None:
        self._requested = False
        self._trainer: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._trainer is not None:
            self._trainer.send_signal(signal.SIGTERM)

    def pass_on_to(self, trainer: "subprocess.Popen[bytes]") -> None:
        self._trainer = trainer
        if self._requested:
            trainer.send_signal(signal.SIGTERM)


def _keep_time(folder: Path, over: threading.Event) -> None:
    """Note now and then how long the log is, so that `logs --since` finds its place in it."""
    noted = 0
    while not over.wait(_TICK_S):
        # A full disk must not end the job's only witness.
        with contextlib.suppress(OSError):
            size = (folder / records.CONSOLE).stat().st_size
            if size != noted:
                noted = size
                with (folder / records.CLOCK).open("ab") as clock:
                    clock.write(b"%.3f %d\n" % (time.time(), size))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
