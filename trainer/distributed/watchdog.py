"""The watchdog names a rank that hangs, with what it waits for, and ends the run.

A stuck loader, file system, device or peer would otherwise hold every device of the job until a person looks. The
training thread notes what it waits for, and no note may last too long. A note costs the training thread one assignment;
a daemon thread does the rest, so that a thread that waits in a collective operation or a system call is watched too.

A compilation can take longer than any other activity. It may last as long as it computes, and its peers wait for it.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainer.distributed.activity import BETWEEN, COMPILER, REPORT_S, Activity, ActivityBoard, stall_line
from trainer.distributed.compilation import CompilerClock
from trainer.shared.errors import CRASHED

TICK_S = 1.0
COMPILER_SHARE = 0.01
"""The least share of a processor that a compilation uses which is not stuck."""
_STDERR = 2


class Watchdog:
    """Ends the process if one activity lasts longer than `timeout_s`, after a line that says what it waited for.

    Until `start` it watches nothing and costs nothing.
    """

    def __init__(
        self, *, rank: int, device: str, world_size: int, timeout_s: float, store_address: tuple[str, int] | None
    ) -> None:
        """Watch one rank of a job.

        Args:
            device: as the user sees it: `npu:3`.
            store_address: MASTER_ADDR and MASTER_PORT, where the ranks report; None in a job of one rank.
        """
        self._tag = f"rank {rank} {device}"
        self._timeout_s = timeout_s
        self._tick_s = min(TICK_S, timeout_s / 10)
        # All that is not noted counts as work between steps.
        self._activity = Activity(BETWEEN)
        self._waited_s = 0.0
        self._before_compilation = self._activity
        self._compiler_clock: CompilerClock | None = None
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._board: ActivityBoard | None = None
        if world_size > 1 and store_address is not None:
            # A waiting rank reads reports only in the second half of the limit, in which a silent one must miss three.
            every_s = min(REPORT_S, timeout_s / 8)
            self._board = ActivityBoard(rank=rank, world_size=world_size, address=store_address, every_s=every_s)
        # The rank that is the cause must print its line first.
        head_start_s = 0.0 if self._board is None else min(30.0, max(3.0, timeout_s / 10))
        self._peers_timeout_s = timeout_s + head_start_s

    def at(self, name: str, **position: int) -> None:
        """Note what follows, until the next note: `at("data", epoch=4, step=17)`."""
        self._activity = Activity(name, position)

    @contextmanager
    def waiting(self, name: str, **position: int) -> Iterator[None]:
        """Note what happens inside; the activity before it starts again afterwards."""
        before, self._activity = self._activity, Activity(name, position)
        try:
            yield
        finally:
            self._activity = Activity(before.name, before.position)

    def begin_compilation(self) -> None:
        """Note that torch's compiler works in this thread, until `end_compilation`."""
        self._compiler_clock = CompilerClock()
        self._before_compilation, self._activity = self._activity, Activity(COMPILER, self._activity.position)

    def end_compilation(self) -> None:
        """Start the activity again in which the compilation began."""
        before = self._before_compilation
        self._activity, self._compiler_clock = Activity(before.name, before.position), None

    def start(self) -> None:
        """Start to watch; the process group must exist."""
        self._arm_backstop()
        board = self._board
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if board is not None:
            reports = threading.Thread(
                target=lambda: board.run(self._stopped, lambda: (self._activity, self._waited_s)),
                name="watchdog-reports",
                daemon=True,
            )
            self._threads.append(reports)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop to watch. A report to a store that does not answer is not waited for."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2 * TICK_S)
        self._threads = []

    def _watch(self) -> None:
        last_activity, last = self._activity, time.monotonic()
        while not self._stopped.wait(self._tick_s):
            now, activity = time.monotonic(), self._activity
            # The time in which the process itself was stopped, as a paused container is, does not count as waiting.
            waited_s = self._waited_s + min(now - last, 2 * self._tick_s)
            if activity is not last_activity or self._compiles():
                waited_s = 0.0
            self._arm_backstop()
            if self._board is not None:
                self._board.set_polling(waited_s > self._timeout_s / 2)
            if waited_s >= (self._timeout_s if activity.needs_no_peer else self._peers_timeout_s):
                if activity.needs_no_peer or not self._peer_compiles():
                    self._end(activity, waited_s)
                waited_s = 0.0
            last_activity, last, self._waited_s = activity, now, waited_s
        faulthandler.cancel_dump_traceback_later()

    def _compiles(self) -> bool:
        clock = self._compiler_clock
        return clock is not None and clock.moved(COMPILER_SHARE * self._timeout_s)

    def _peer_compiles(self) -> bool:
        """Return whether another rank compiles, by its last report; its own watchdog knows whether it is stuck."""
        peers = [] if self._board is None else self._board.peers()
        return any(peer.activity is not None and peer.activity.name == COMPILER and not peer.silent for peer in peers)

    def _arm_backstop(self) -> None:
        """Have the process ended without the interpreter if this thread cannot run any more.

        Native code that hangs while it holds the interpreter's lock would stop the watchdog too.
        """
        faulthandler.dump_traceback_later(2 * self._peers_timeout_s, exit=True)

    def _end(self, activity: Activity, waited_s: float) -> NoReturn:
        peers = None if self._board is None or activity.needs_no_peer else self._board.peers()
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        line = stall_line(activity, tag=self._tag, waited_s=waited_s, peers=peers)
        # Not through sys.stdout: the stuck thread may hold its lock.
        os.write(_STDERR, f"{line}\n".encode())
        os._exit(CRASHED)  # other processes perhaps do not hang
