"""`--mode prove`: the checks of `python -m trainer prove` as a job, in the pods or processes of its nodes.

The job has no workers, no attempts and no training state. Its folder gets the report.
"""

import os
import signal
import time

from trainer.commands.prove import describe_failures, scratch_folder, write_report
from trainer.environment.facts import read_facts
from trainer.proof.catalogue import choose_checks
from trainer.proof.check import Result
from trainer.proof.check_process import Folders
from trainer.proof.report import describe_result, make_proof
from trainer.proof.runner import run_checks
from trainer.shared.config import TrainConfig
from trainer.shared.errors import NO_RETRY, RESUMABLE, FolderTakenError, TrainerError, UsageError
from trainer.shared.runs import is_run_folder
from trainer.shared.text import visible
from trainer.supervisor import Failure, Outcome, Supervisor
from trainer.topology import Topology
from trainer.topology.visible import DeviceKind


class ProofJob:
    """The checks of one node of the job."""

    def __init__(self, config: TrainConfig, topology: Topology, kind: DeviceKind) -> None:
        """Check the settings.

        Args:
            config: The settings of the job.
            topology: This node's place in it.
            kind: Of the devices.

        Raises:
            UsageError: there is no such check, or torchrun starts the processes.
            FolderTakenError: the folder is another run's.
        """
        if topology.source == "torchrun":
            raise UsageError("--mode prove starts a process for each device by itself: start it without torchrun")
        self._checks = choose_checks(config.checks.split(",") if config.checks else None, kind, option="--checks")
        self._folder = config.output / (config.run_name or time.strftime("prove-%Y%m%d-%H%M%S"))
        if is_run_folder(self._folder):
            raise FolderTakenError(f"--run-name {self._folder.name}: {self._folder} has a run: choose another name")
        self._config, self._topology, self._kind = config, topology, kind
        self._results: list[Result] = []

    def run(self, supervisor: Supervisor) -> int:
        """Run the checks on this node and its devices, write the report, and return the exit code.

        A check that has not passed gives the code after which no kind of job tries again: the same node would give the
        same result. A stop by a signal gives the code after which it does.
        """

        def report(result: Result) -> None:
            self._results.append(result)
            supervisor.say(visible(describe_result(result)))

        started_at = time.time()
        devices = [worker.local_rank for worker in self._topology.workers]
        folders = Folders(scratch_folder(), self._config.output)
        stop = run_checks(self._kind, devices, self._checks, folders, report)
        code, cause = self._outcome(stop)
        stopped = None if stop is None else signal.Signals(stop).name
        proof = make_proof(
            self._kind, read_facts(os.environ), self._checks, self._results, started_at=started_at, stopped=stopped
        )
        try:
            path = write_report(proof, self._folder, runs=self._config.output)
            supervisor.say(visible(f"the report is in {path} and {path.with_suffix('.json')}"))
        except TrainerError as error:
            code, cause = code or error.exit_code, cause or str(error)
        supervisor.end(Outcome(code, Failure(None, "", visible(cause)) if cause else None))
        return code

    def _outcome(self, stop: int | None) -> tuple[int, str]:
        """Return the exit code and its cause."""
        if stop is not None:
            return RESUMABLE, ""
        failures = describe_failures(self._results)
        return (NO_RETRY, failures) if failures else (0, "")
