"""The watchdog of one worker: its training thread marks what it waits for, and no mark may last too long.

A mark costs the training thread one assignment; a daemon thread does the rest, so that a thread that waits in a
collective operation or a system call is watched just as well.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainer.distributed.watchdog.board import POST_S, Board
from trainer.distributed.watchdog.marks import BETWEEN, Mark, stall_line

TICK_S = 1.0
EXIT_CODE = 1
_STDERR = 2


class Watchdog:
    """Ends the process if one mark lasts longer than `timeout_s`, after a line that says what it waited for.

    Until `start` it watches nothing and costs nothing.
    """

    def __init__(
        self, *, rank: int, device: str, world_size: int, timeout_s: float, store_address: tuple[str, int] | None
    ) -> None:
        """Watch one rank of a job.

        Args:
            device: as it is shown: `npu:3`.
            store_address: MASTER_ADDR and MASTER_PORT, where the ranks say where they are; None in a job of one rank.
        """
        self._tag = f"rank {rank} {device}"
        self._timeout_s = timeout_s
        self._tick_s = min(TICK_S, timeout_s / 10)
        self._mark: Mark | None = None
        self._waited_s = 0.0
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._board: Board | None = None
        if world_size > 1 and store_address is not None:
            every_s = min(POST_S, timeout_s / 4)
            self._board = Board(rank=rank, world_size=world_size, address=store_address, every_s=every_s)
        # The rank that is the cause has to be first with its line.
        head_start_s = 0.0 if self._board is None else min(30.0, max(3.0, timeout_s / 10))
        self._peers_timeout_s = timeout_s + head_start_s

    def at(self, what: str, **where: int) -> None:
        """Say what follows, until the next mark: `at("compute", epoch=4, step=17)`."""
        self._mark = Mark(what, where)

    @contextmanager
    def waiting(self, what: str, **where: int) -> Iterator[None]:
        """Mark what happens inside; what was marked before begins anew afterwards."""
        before, self._mark = self._mark, Mark(what, where)
        try:
            yield
        finally:
            self._mark = None if before is None else Mark(before.what, before.where)

    def start(self) -> None:
        """Begin to watch; the process group has been joined. What has no mark of its own is work between steps."""
        self._mark = self._mark or Mark(BETWEEN)
        self._arm_backstop()
        board = self._board
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if board is not None:
            post = threading.Thread(
                target=lambda: board.run(self._over, lambda: (self._mark, self._waited_s)),
                name="watchdog-posts",
                daemon=True,
            )
            self._threads.append(post)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Watch no more. A post to a store that does not answer is left to itself."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * TICK_S)
        self._threads = []

    def _watch(self) -> None:
        seen, last = self._mark, time.monotonic()
        while not self._over.wait(self._tick_s):
            now, mark = time.monotonic(), self._mark
            # A process that was stopped and goes on, as a paused container does, has not waited meanwhile.
            waited_s = self._waited_s + min(now - last, 2 * self._tick_s) if mark is seen else 0.0
            seen, last, self._waited_s = mark, now, waited_s
            self._arm_backstop()
            if self._board is not None:
                self._board.be_curious(mark is not None and waited_s > self._timeout_s / 2)
            if mark is not None and waited_s >= self._limit_s(mark):
                self._end(mark, waited_s)
        faulthandler.cancel_dump_traceback_later()

    def _limit_s(self, mark: Mark) -> float:
        return self._timeout_s if self._alone_at(mark) else self._peers_timeout_s

    def _alone_at(self, mark: Mark) -> bool:
        return self._board is None or mark.of_its_own

    def _arm_backstop(self) -> None:
        """End the process without the interpreter if this thread does not get to run any more.

        Native code that hangs while it holds the interpreter's lock would stop the watchdog too.
        """
        faulthandler.dump_traceback_later(2 * self._peers_timeout_s, exit=True)

    def _end(self, mark: Mark, waited_s: float) -> NoReturn:
        peers = None if self._board is None or self._alone_at(mark) else self._board.peers()
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        line = stall_line(mark, tag=self._tag, waited_s=waited_s, peers=peers)
        # Not through sys.stdout: the stuck thread may hold its lock.
        os.write(_STDERR, f"{line}\n".encode())
        os._exit(EXIT_CODE)
