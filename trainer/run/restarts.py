"""A crash costs seconds: new workers start in the pod of the crashed ones, as the next attempt of the run.

A new pod would have to be scheduled, to get its devices and its rank table, and to wait for the lock of the run; it
would also use up one of the job's retries. A failure that new workers would meet again (a wrong setting, a folder that
was taken, a device that has failed, a stop) ends this process, so that the platform can act.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoint.writing import CheckpointWriter
from trainer.records.attempts import write_attempt
from trainer.records.lease import Lease
from trainer.run.attempt import Attempt, RunStarter, restart_run
from trainer.run.evidence import begin_evidence, keep_ends
from trainer.run.history import begin_record, end_record, history_lines
from trainer.run.meeting import Meeting, Rendezvous, Report, SingleNode
from trainer.run.rendezvous import FirstNode, OtherNode
from trainer.run.resume import result_of
from trainer.run.snapshots import save_newest_snapshot, usable_snapshots
from trainer.run.tries import ENDING, Ending
from trainer.run.worker_commands import worker_command
from trainer.shared.container import oom_kills
from trainer.shared.errors import NO_RETRY, RESUMABLE, FolderTakenError, NoRetryError, TrainerError
from trainer.shared.files import AGAIN, with_home
from trainer.supervisor import Failure, Outcome, Supervisor
from trainer.topology.ports import listen_on_free_port, port_of

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
        attempt: The first one of this process, which has begun.
        device: `npu`, `cuda` or `cpu`.

    Raises:
        NoRetryError: The same, and the job has no retry left.
        TrainerError: The first attempt's workers cannot be started, or the other nodes did not come.
    """
    # From now on only the supervisor writes to stdout, which may have taken half a line.
    starter = dataclasses.replace(starter, on_note=supervisor.say)
    pod = _Pod(attempt, starter, supervisor, device)
    try:
        with _explaining():
            outcome = pod.run()
        pod.save_newest_snapshot(outcome.exit_code)
    except TrainerError as error:
        used_up = error.exit_code == TrainerError.exit_code and pod.end_try("failed", str(error))
        pod.save_newest_snapshot(error.exit_code)
        if used_up:
            raise NoRetryError(str(error)) from error
        raise
    finally:
        pod.rendezvous.close(stopped=supervisor.stop_requested)
    supervisor.end(outcome)
    return outcome


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Turn an error of the system, such as a file server's, into a failure of the try.

    Raises:
        TrainerError: The system refused something.
    """
    try:
        yield
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        raise TrainerError(f"{place}{error.strerror or error}; {AGAIN}") from error


class _Pod:
    """One node's attempts, one after another, as all nodes agree on them."""

    def __init__(self, attempt: Attempt, starter: RunStarter, supervisor: Supervisor, device: str) -> None:
        self._attempt = attempt
        self._starter = starter
        self._supervisor = supervisor
        self._device = device
        self._console = attempt.number
        # torchrun has a trainer for each rank, and its agent starts all of them again.
        self._limit = RestartLimit(0 if starter.topology.source == "torchrun" else attempt.config.restarts)
        self._record: Mapping[str, Any] = {}
        self._told: set[str] = set()
        self._listener: socket.socket | None = None
        """Where the workers of the next attempt meet, for the process of rank 0."""
        self.rendezvous = _rendezvous(attempt, starter, supervisor)

    def run(self) -> Outcome:
        """Run the attempts; return the last one's outcome, with which this process ends."""
        outcome = self._run()
        if outcome.crashed and (self._supervisor.stop_requested or self.rendezvous.peers_end == "stopped"):
            outcome = Outcome(RESUMABLE, None)
        used_up = self.end_try(self._ending(outcome))
        return dataclasses.replace(outcome, exit_code=NO_RETRY) if used_up and outcome.exit_code == 1 else outcome

    def end_try(self, ending: Ending, cause: str | None = None) -> bool:
        """Note how this process ends; return whether the job has no retry left.

        Args:
            cause: Why, if no worker's record says it.
        """
        retries = self._starter.retries
        if not self._starter.is_first_node:
            return False
        record = self._record or self._begin_record(None)
        self._keep({**record, **({} if cause is None else {"cause": cause}), ENDING: ending})
        try:
            if ending != "failed" or retries is None or not retries.are_used_up(self._attempt.run):
                return False
        except OSError as error:  # the next try counts
            self._warn(error)
            return False
        self._supervisor.say(f"no retry: --retries {retries.limit} of this job are used up")
        return True

    def _ending(self, outcome: Outcome) -> Ending:
        if outcome.exit_code == 0:
            return "done"
        if outcome.exit_code == RESUMABLE or outcome.stopped:
            return "stopped"
        return "lost" if outcome.crashed and self.rendezvous.peers_end == "lost" else "failed"

    def _run(self) -> Outcome:
        if self._attempt.checkpoint is not None and self._is_complete(self._attempt.checkpoint):
            outcome = Outcome(0, None)
            self._keep({**self._begin_record(None), **end_record(self._attempt.run, outcome)})
            self._tell_history()
            return outcome
        meeting = self.rendezvous.meet(None, self._begin_first)
        outcome = Outcome(RESUMABLE, None)
        if meeting is not None:
            # Each node has chosen the checkpoint that it sees; the workers compare them.
            self._follow(meeting, self._attempt.checkpoint)
            outcome = self._run_workers(None)
        while (failure := outcome.first_failure) is not None:
            if outcome.crashed and self._is_complete():
                return Outcome(0, None)
            try:
                report = Report(outcome.crashed, failure.fields, outcome.stopped)
                meeting = self.rendezvous.meet(report, self._begin_next)
                if meeting is None:
                    break
                checkpoint = None if meeting.checkpoint is None else self._attempt.run / meeting.checkpoint
                self._follow(meeting, checkpoint)
                self._take_up_snapshots()
                self._supervisor.say(f"restart attempt={meeting.attempt} {meeting.cause}")
                outcome = self._run_workers(meeting.cause)
            except TrainerError as error:
                return Outcome(error.exit_code, Failure(None, "", str(error)))
        return outcome

    def _is_complete(self, checkpoint: Path | None = None) -> bool:
        """Return whether the run of several nodes is complete, and say so: the other nodes may have ended for good.

        Args:
            checkpoint: The newest valid one, if it is known.
        """
        if isinstance(self.rendezvous, SingleNode):
            return False
        run = self._attempt.run
        result = result_of(run, epochs=self._attempt.config.epochs, checkpoint=checkpoint)
        if result is not None:
            self._supervisor.say(f"complete: the result of {run} is in {result.name}: this node has nothing left to do")
        return result is not None

    def _run_workers(self, crash: str | None) -> Outcome:
        """Run one attempt, after this crash of the one before it."""
        topology, attempt = self._starter.topology, self._attempt
        record = self._begin_record(crash)
        self._keep(record)
        self._tell_history()
        environment, kills = self._starter.environment, oom_kills()
        evidence = begin_evidence(attempt.run, attempt.number, topology.node_rank, environment=environment)
        with self._listener or contextlib.nullcontext() as listener:
            commands = [
                worker_command(
                    worker,
                    topology,
                    attempt,
                    device=self._device,
                    command=self._starter.command,
                    affinity=self._starter.affinity,
                    console=self._console,
                    listener=None if listener is None else listener.fileno(),
                )
                for worker in topology.workers
            ]
            outcome = self._supervisor.run(commands, grace_s=attempt.config.grace_s, peers=self.rendezvous)
        self._keep({**record, **end_record(attempt.run, outcome)})
        self._tell_history()
        if outcome.exit_code not in {0, RESUMABLE, FolderTakenError.exit_code}:
            keep_ends(evidence, outcome.ends, kills_before=kills, home=with_home(Path("~")))
        return outcome

    def _begin_record(self, crash: str | None) -> Mapping[str, Any]:
        attempt, retries = self._attempt, self._starter.retries
        return begin_record(
            attempt.run,
            job=None if retries is None else retries.job,
            nodes=self._starter.topology.nodes,
            checkpoint=_place(attempt),
            crash=crash,
        )

    def _keep(self, record: Mapping[str, Any]) -> None:
        """Write the attempt's record; a full disk, or a file server that does not answer, costs only that."""
        self._record = record
        if not self._starter.is_first_node:
            return
        try:
            self._attempt.lease.check()
            write_attempt(self._attempt.run, self._attempt.number, record)
        except (OSError, TrainerError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        self._supervisor.say(f"warning text={json.dumps(str(error))}")

    def _tell_history(self) -> None:
        """Print a line about each attempt of which this log does not tell yet: often only a log can be seen."""
        if not self._starter.is_first_node:
            return
        try:
            lines = history_lines(self._attempt.run)
        except OSError as error:
            self._warn(error)
            return
        for line in lines:
            if line not in self._told:
                self._told.add(line)
                self._supervisor.say(line)

    def _begin_first(self, _cause: str) -> Meeting:
        """Return the attempt that has begun."""
        topology = self._starter.topology
        port = self._hold_port(topology.master_port)
        token = self._attempt.lease.token
        return Meeting(self._attempt.number, topology.master_addr, port, lock_token=token)

    def _begin_next(self, cause: str) -> Meeting | None:
        """Begin the attempt that follows a crash; return None if this process must end."""
        if not self._limit.per_hour or self._supervisor.stop_requested:
            return None
        if not self._limit.take():
            self._supervisor.say(f"no restart: --restarts {self._limit.per_hour} of this hour are used up")
            return None
        try:
            with _explaining():
                attempt = restart_run(self._attempt, self._starter)
        except TrainerError as error:
            self._supervisor.say(f"no restart: {error}")
            return None
        # No process of the crashed attempt can meet the new ones at another port.
        port = self._hold_port(self._attempt.config.master_port)
        address, checkpoint = self._starter.topology.master_addr, _place(attempt)
        return Meeting(attempt.number, address, port, checkpoint, cause, attempt.lease.token)

    def _hold_port(self, given: int | None) -> int:
        """Return the port at which the workers meet: a given one on a single node, else a free one, which is held."""
        if self._starter.topology.world_size == 1 or (given and isinstance(self.rendezvous, SingleNode)):
            return given or 0
        self._listener = listen_on_free_port()
        return port_of(self._listener)

    def _follow(self, meeting: Meeting, checkpoint: Path | None) -> None:
        """Take over what the first node has decided."""
        lease = self._attempt.lease
        if lease.token != meeting.lock_token:
            lease = Lease(self._attempt.run, meeting.lock_token)
        self._attempt = dataclasses.replace(self._attempt, number=meeting.attempt, checkpoint=checkpoint, lease=lease)
        topology = dataclasses.replace(self._starter.topology, master_addr=meeting.address, master_port=meeting.port)
        self._starter = dataclasses.replace(self._starter, topology=topology)

    def _take_up_snapshots(self) -> None:
        """Offer this node's snapshots to the workers, who choose one that all nodes have."""
        attempt = self._attempt
        if not self._starter.is_single_node:
            snapshots = usable_snapshots(
                attempt.memory, attempt.run, world_size=self._starter.topology.world_size, on_note=self._supervisor.say
            )
            self._attempt = dataclasses.replace(attempt, snapshots=tuple(snapshot.path for snapshot in snapshots))

    def save_newest_snapshot(self, exit_code: int) -> None:
        """Write what the last workers have left in memory to the disk, on the first node, unless its folder is lost."""
        attempt = self._attempt
        if self._starter.is_first_node and exit_code != FolderTakenError.exit_code:
            save_newest_snapshot(
                attempt.memory,
                attempt.run,
                world_size=self._starter.topology.world_size,
                writer=CheckpointWriter(attempt.number, attempt.lease.prove),
                on_note=self._supervisor.say,
            )


def _place(attempt: Attempt) -> str | None:
    """Return the path of what it continues from, from the run's folder, which other nodes can have at another place.

    A snapshot has its own path, which only this node has.
    """
    checkpoint = attempt.checkpoint
    if checkpoint is None or checkpoint.parent == attempt.memory:
        return None if checkpoint is None else str(checkpoint)
    return os.path.relpath(checkpoint, attempt.run)


def _rendezvous(attempt: Attempt, starter: RunStarter, supervisor: Supervisor) -> Rendezvous:
    topology = starter.topology
    if topology.nodes == 1 or topology.source == "torchrun":
        return SingleNode()
    name = attempt.run.name
    if starter.is_first_node:
        return FirstNode(supervisor, topology.master_port, nodes=topology.nodes, run=name)
    return OtherNode(
        supervisor,
        topology.master_addr,
        topology.master_port,
        node=topology.node_rank,
        nodes=topology.nodes,
        run=name,
    )
