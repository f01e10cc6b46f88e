"""A crash costs seconds: new workers start in the pod of the crashed ones, as the next attempt of the run.

A new pod would have to be scheduled, to get its devices and its rank table, and to wait for the lock of the run; it
would also use up one of the job's retries. A failure that new workers would meet again (a wrong setting, a folder that
was taken, a device that has failed, a stop) ends this process, so that the platform can act.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable

from trainer.run.attempt import Attempt, RunStarter, restart_run
from trainer.run.worker_commands import worker_command
from trainer.shared.errors import TrainerError
from trainer.supervisor import Failure, Outcome, Supervisor
from trainer.topology.ports import free_port

_HOUR_S = 3600.0


class RestartLimit:
    """Counts the restarts of the last hour."""

    def __init__(self, per_hour: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_hour = per_hour
        self._clock = clock
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """Count one more restart; return False if there have been as many as one hour may have."""
        now = self._clock()
        while self._times and self._times[0] <= now - _HOUR_S:
            self._times.popleft()
        if len(self._times) >= self.per_hour:
            return False
        self._times.append(now)
        return True


def run_attempts(attempt: Attempt, starter: RunStarter, supervisor: Supervisor, *, device: str) -> Outcome:
    """Run the workers of `attempt`, and of the attempts that follow crashes; print the last lines.

    Args:
        attempt: The first one, which has begun.
        device: `npu`, `cuda` or `cpu`.

    Raises:
        TrainerError: A worker cannot be started.
    """
    limit = RestartLimit(0 if starter.topology.source == "torchrun" else attempt.config.restarts)
    # From now on only the supervisor writes to stdout, which may have taken half a line.
    starter = dataclasses.replace(starter, on_note=supervisor.say)
    first = attempt.number
    while True:
        commands = [
            worker_command(worker, starter.topology, attempt, device=device, command=starter.command, console=first)
            for worker in starter.topology.workers
        ]
        try:
            outcome = supervisor.run(commands, grace_s=attempt.config.grace_s)
        except TrainerError as error:
            if attempt.number == first:
                raise
            outcome = Outcome(error.exit_code, Failure(None, "", str(error)))
        following = _follow(attempt, starter, supervisor, outcome, limit)
        if following is None:
            supervisor.end(outcome)
            return outcome
        attempt, starter = following


def _follow(
    attempt: Attempt, starter: RunStarter, supervisor: Supervisor, outcome: Outcome, limit: RestartLimit
) -> tuple[Attempt, RunStarter] | None:
    """Begin the attempt that follows a crash; return None if this process must end."""
    topology = starter.topology
    if not outcome.crashed or topology.nodes > 1 or limit.per_hour == 0 or supervisor.stop_requested:
        return None
    if not limit.take():
        supervisor.say(f"no restart: --restarts {limit.per_hour} of this hour are used up")
        return None
    if attempt.config.master_port is None:
        # No process of the crashed attempt can meet the new ones.
        starter = dataclasses.replace(starter, topology=dataclasses.replace(topology, master_port=free_port()))
    try:
        following = restart_run(attempt, starter)
    except TrainerError as error:
        supervisor.say(f"no restart: {error}")
        return None
    supervisor.say(
        f"restart attempt={following.number} {outcome.first_failure.fields if outcome.first_failure else ''}"
    )
    return following, starter
