"""One node's supervisor: groups of workers, one after another, with one output and one set of signal handlers."""

import select
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from trainer.supervisor.console import Console
from trainer.supervisor.failure_cause import Outcome
from trainer.supervisor.loop import USUAL_LIMITS, Limits, Loss, Peers, Sampler, WorkerLoop
from trainer.supervisor.signals import SignalInbox
from trainer.supervisor.worker import WorkerCommand


class Supervisor(AbstractContextManager["Supervisor"]):
    """Runs one group of workers after another on one node; use it from the main thread.

    Each line that a worker prints, on stdout or stderr, goes to stdout and to the rank's log file as
    `[rank 3 npu:3 #1042] text`; the supervisor's own are `[node 0 #5] text`. The numbers go on from group to group, so
    that a reader of the container's log can tell that no line is missing. A signal between two groups is for the next
    one.
    """

    def __init__(
        self,
        stdout: BinaryIO,
        *,
        node_rank: int,
        limits: Limits = USUAL_LIMITS,
        loss: Loss = lambda: None,
        sampler: Sampler | None = None,
    ) -> None:
        """Take over `stdout`.

        Args:
            loss: Returns why the run's folder is lost; a SIGTERM then kills the workers at once, with this cause.
            sampler: Of this node's hardware; rank 0 gets the samples of all nodes as lines of JSON on its stdin.
        """
        stdout.flush()
        self._console = Console(stdout, node_rank=node_rank)
        self._signals = SignalInbox()
        self._limits = limits
        self._loss = loss
        self._sampler = sampler

    def __enter__(self) -> "Supervisor":
        self._signals.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self._signals.close()
        self._console.close()

    def run(self, commands: Sequence[WorkerCommand], *, grace_s: float, peers: Peers | None = None) -> Outcome:
        """Run every worker to its end, and leave no process of them.

        When one worker fails, the others are stopped, and the workers of `peers`. SIGTERM and SIGINT are passed on as
        SIGTERM, SIGUSR1 as it is; after `grace_s` seconds, or at a second SIGTERM or SIGINT, the workers are killed.
        HAND_OVER stops them like a first SIGTERM.

        Returns:
            Exit code 0; 75 if the workers have stopped resumably; the first failing worker's if it is 1, 2, 6 or 7;
            else 1.

        Raises:
            TrainerError: A worker cannot be started; none is left running.
        """
        loop = self._loop(grace_s, peers, self._sampler)
        try:
            for command in commands:
                loop.start(command)
            return loop.run()
        finally:
            loop.close()

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has asked this node to stop, in a group or between two of them."""
        self._signals.read()
        return self._signals.stops > 0 or self._signals.handed_over

    def wait(self, fd: int, *, timeout_s: float) -> bool:
        """Wait between two groups until `fd` can be read; return False if a signal asks to stop."""
        ready = select.poll()
        for number in (fd, self._signals.fd):
            ready.register(number, select.POLLIN)
        ready.poll(timeout_s * 1000)
        return not self.stop_requested

    def say(self, text: str) -> None:
        """Print a line of the supervisor's own."""
        self._console.say(text)

    def end(self, outcome: Outcome) -> None:
        """Print the last lines: `ended lines="3:1042 4:977" outcome=failed` and the first cause of a failure.

        A reader that follows the lines can tell by these counts that the last ones have arrived.
        """
        self.say(f'ended lines="{self._console.counts}" outcome={outcome.word}')
        if outcome.first_failure is not None:
            self.say(str(outcome.first_failure))
        loop = self._loop(grace_s=0.0)
        try:
            loop.flush()
        finally:
            loop.close()

    def _loop(self, grace_s: float, peers: Peers | None = None, sampler: Sampler | None = None) -> WorkerLoop:
        return WorkerLoop(
            self._console,
            self._signals,
            peers,
            grace_s=grace_s,
            limits=self._limits,
            loss=self._loss,
            sampler=sampler,
        )
