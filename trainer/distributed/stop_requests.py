"""Requests to save, to stop or to profile while a run trains, and how all ranks agree on the step for it.

Each rank posts its request after a step. The largest request of all ranks is read one step later, when it has long
arrived, so that no rank waits for it. By construction all ranks read the same answer at the same step.
"""

import signal
from collections import deque
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainer.shared.profiles import ProfileRequest


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
        self._profiles: deque[ProfileRequest] = deque()
        # The request, and the parts of a profile's. Only rank 0 posts one, so that the maximum is its own.
        self._posted = np.zeros(4, dtype=np.int64)
        self._work: Any = None
        self.profile: ProfileRequest | None = None
        """The profile on which all ranks have agreed, until one of their next steps takes it."""

    def ask_for_profile(self, request: ProfileRequest) -> None:
        """Pass a request on to all ranks, on rank 0; any thread can call it."""
        self._profiles.append(request)

    def take_profile(self) -> ProfileRequest:
        """Return the profile on which all ranks have agreed, once."""
        assert self.profile is not None
        profile, self.profile = self.profile, None
        return profile

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
        urgency, steps, rank, number = self._posted.tolist()
        agreed = Request(urgency)
        if steps:
            self.profile = ProfileRequest(number, rank, steps)
            self._posted[1:] = 0
        if agreed is Request.SAVE:
            self._signalled.discard(Request.SAVE)
        self._posted[0] = max({own} | self._signalled)
        if self._profiles:
            asked = self._profiles.popleft()
            self._posted[1:] = asked.steps, asked.rank, asked.number
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
