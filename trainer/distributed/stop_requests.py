"""Requests to save or to stop while a run trains, and how all ranks agree on the step at which they do it.

Each rank posts its request after a step. The largest request of all ranks is read one step later, when it has long
arrived, so that no rank waits for it. By construction all ranks read the same answer at the same step.
"""

import signal
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


class Request(IntEnum):
    """In order of urgency; the largest counts."""

    NONE = 0
    SNAPSHOT = 1
    SAVE = 2
    STOP = 3
    """Save, and leave."""


class StopRequests:
    """This rank's requests, and the answer of all. Every rank calls `all_reduce_requests` equally often."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """`group` is a gloo group, so that no device takes part; None for a single process."""
        self._group = group
        # Requests of signals. A handler only adds one: it may interrupt another one, and must not undo its note.
        self._signalled: set[Request] = set()
        self._posted = np.zeros(1, dtype=np.int64)
        self._work: Any = None

    def listen(self) -> None:
        """From now on SIGTERM asks to stop and SIGUSR1 to save. Before, SIGTERM ends the process: nothing is lost."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._signalled.add(Request.STOP))
        signal.signal(signal.SIGUSR1, lambda _number, _frame: self._signalled.add(Request.SAVE))
        # The supervisor starts a worker with SIGUSR1 blocked, because by default it ends a process. SIGTERM is blocked
        # too if the run's last starts were stopped before their first step: this one takes a step before it stops.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGTERM})

    def all_reduce_requests(self, own: Request) -> Request:
        """Post `own`, or a signal's request if that is larger. Return what all ranks agreed on one call earlier."""
        if self._work is not None:
            self._work.wait()
        agreed = Request(self._posted.item())
        if agreed is Request.SAVE:
            self._signalled.discard(Request.SAVE)
        self._posted[0] = max({own} | self._signalled)
        if self._group is not None:
            # The tensor shares the array's memory.
            posted = torch.from_numpy(self._posted)
            self._work = dist.all_reduce(posted, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def settle(self) -> None:
        """Wait for the reduction that is still under way, before the process group is destroyed."""
        if self._work is not None:
            self._work.wait()
            self._work = None
