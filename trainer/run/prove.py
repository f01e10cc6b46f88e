"""`--mode prove`: the checks of `python -m trainer prove` as a job, in the pods or processes of its nodes.

The job has no workers, no attempts and no training state. Its folder gets the report, which the first node writes.
"""

import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.commands.prove import describe_failures, proof_scratch, write_proof
from trainer.environment.facts import Facts, read_facts
from trainer.proof.catalogue import choose_checks
from trainer.proof.check import CheckPlace, ProofCheck, Result
from trainer.proof.check_process import Folders
from trainer.proof.places import NodeDevices
from trainer.proof.report import describe_result, make_proof
from trainer.proof.runner import run_check_at, run_checks
from trainer.proof.small_runs import run_environment
from trainer.proof.tune import TUNED, TuningPlan, plan_tuning, run_tuning
from trainer.run.prove_nodes import ProofFollower, ProofLeader, ProofNodes, ProofSide
from trainer.shared import variables
from trainer.shared.config import TrainConfig
from trainer.shared.config.train import OF_ONE_ATTEMPT
from trainer.shared.container import node_name
from trainer.shared.errors import NO_RETRY, RESUMABLE, FolderTakenError, TrainerError, UsageError
from trainer.shared.runs import is_run_folder
from trainer.shared.text import visible
from trainer.supervisor import Failure, Outcome, Supervisor
from trainer.topology import Topology, visible_devices
from trainer.topology.visible import DeviceKind

_OF_THE_JOB = OF_ONE_ATTEMPT - {"threads", "workers"} | {"mode", "checks", "tune", "data_path", "epochs", "steps"}
"""Settings that a timed step does not take from the job."""


class ProofJob:
    """The checks of one node of the job."""

    def __init__(self, config: TrainConfig, topology: Topology, kind: DeviceKind) -> None:
        """Check the settings.

        Args:
            config: The settings of the job.
            topology: This node's place in it.
            kind: Of the devices.

        Raises:
            UsageError: there is no such check, torchrun starts the processes, the nodes have no common name, or the
                settings are no settings of a step.
            FolderTakenError: the folder is another run's.
        """
        if topology.source == "torchrun":
            raise UsageError("--mode prove starts a process for each device by itself: start it without torchrun")
        if topology.nodes > 1 and config.run_name is None:
            raise UsageError("--run-name is needed for several nodes, which find each other by it")
        self._checks = choose_checks(None if config.checks is None else [config.checks], kind, option="--checks")
        self._folder = config.output / (config.run_name or time.strftime("prove-%Y%m%d-%H%M%S"))
        if is_run_folder(self._folder):
            raise FolderTakenError(f"--run-name {self._folder.name}: {self._folder} has a run: choose another name")
        self._config, self._topology, self._kind = config, topology, kind
        self._tuning = self._plan_tuning() if config.tune else None
        self._node = topology.node_rank if topology.nodes > 1 else None
        self._results: list[Result] = []

    def run(self, supervisor: Supervisor) -> int:
        """Run the checks on this node and its devices, then the common ones of all nodes; return the exit code.

        A check that has not passed gives the code after which no kind of job tries again: the same node would give the
        same result. A stop by a signal gives the code after which it does.
        """
        started_at, facts = time.time(), read_facts(os.environ)
        folders = Folders(proof_scratch(), self._config.output)

        def report(result: Result) -> None:
            self._results.append(result)
            supervisor.say(visible(describe_result(result)))

        def run_common(place: CheckPlace, check: ProofCheck) -> tuple[int | None, Sequence[Result]]:
            if not place.own_ranks:
                return None, ()
            known = len(self._results)
            stop = run_check_at(place, check, folders, report, model=next(iter(self._open_models().values()), ""))
            return stop, self._results[known:]

        side: ProofSide | None = None
        if self._node is not None:
            nodes = ProofNodes(
                self._topology,
                self._kind,
                self._folder.name,
                node_name(),
                facts.versions,
                supervisor,
                report,
                run_common,
            )
            side = ProofLeader(nodes) if self._node == 0 else ProofFollower(nodes)
        try:
            common = [check for check in self._checks if side is not None and check.scope == "all"]
            own = [check for check in self._checks if check not in common]
            stop = run_checks(self._devices(), own, folders, report)
            if side is not None and stop is None:
                stop = side.run(self._open_devices(), common, tuple(self._results))
                self._results += side.results
            if self._tuning is not None and stop is None:
                known = tuple(self._results)
                stop = run_tuning(self._tuning, own, known, proof_scratch(), say=supervisor.say, report=report)
            runs = None if side is not None and side.versions_differ else self._config.output
            hosts = {} if side is None else side.hosts
            return self._end(supervisor, facts, runs, hosts, started_at=started_at, stop=stop)
        finally:
            if side is not None:
                side.close()

    def _devices(self) -> NodeDevices:
        """Return the devices of this node."""
        workers = self._topology.workers
        ids = {worker.local_rank: worker.device_id for worker in workers}
        return NodeDevices(self._kind, list(ids), self._node, ids)

    def _open_models(self) -> dict[str, str]:
        """Return what each device that has opened calls itself, by its place."""
        opening = {check.name for check in self._checks if check.opens}
        opened = [result for result in self._results if result.check in opening and _has_passed(result)]
        return {result.place: result.outcome.measured for result in opened}

    def _plan_tuning(self) -> TuningPlan:
        """Return what to try for steps with the job's settings; the profile of an earlier attempt stays."""
        devices = tuple(worker.local_rank for worker in self._topology.workers)
        environ = run_environment(CheckPlace(self._kind, devices, 0, 0), os.environ) | _as_variables(self._config)
        names = (TUNED if number == 1 else f"tuned-{number}.yaml" for number in itertools.count(1))
        return plan_tuning(
            visible_devices(self._kind, os.environ),
            len(devices),
            next(self._folder / name for name in names if not os.path.lexists(self._folder / name)),
            environ,
            on_cpu=self._kind == "cpu" or read_facts(os.environ).emulated,
        )

    def _open_devices(self) -> dict[int, int]:
        """Return torch's number of each device that has opened, by its rank in the job."""
        models, devices = self._open_models(), self._devices()
        return {
            worker.rank: worker.local_rank
            for worker in self._topology.workers
            if devices.place((worker.local_rank,)).name in models
        }

    def _end(
        self,
        supervisor: Supervisor,
        facts: Facts,
        runs: Path | None,
        hosts: Mapping[str, str],
        *,
        started_at: float,
        stop: int | None,
    ) -> int:
        """Write the report on the first node, and print the last lines; return the exit code.

        Args:
            supervisor: Prints lines.
            facts: About this machine.
            runs: The folder for the records of what has passed; None if they would not hold.
            hosts: The machines of several nodes.
            started_at: Seconds since 1970.
            stop: The signal that has ended the checks early.
        """
        failures = "" if stop is not None else describe_failures(self._results)
        code, cause = RESUMABLE if stop is not None else NO_RETRY if failures else 0, failures
        if not self._node:
            stopped = None if stop is None else signal.Signals(stop).name
            proof = make_proof(
                self._kind,
                facts,
                self._checks,
                self._results,
                tuning_rows=() if self._tuning is None else self._tuning.rows,
                hosts=hosts,
                started_at=started_at,
                stopped=stopped,
            )
            try:
                path = write_proof(proof, self._folder, runs=runs)
                supervisor.say(visible(f"the report is in {path} and {path.with_suffix('.json')}"))
            except TrainerError as error:
                code, cause = code or error.exit_code, cause or str(error)
        supervisor.end(Outcome(code, Failure(None, "", visible(cause)) if cause else None))
        return code


def _as_variables(config: TrainConfig) -> dict[str, str]:
    """Return the job's settings of a step, as variables of a run."""
    fields = config.model_fields_set - _OF_THE_JOB
    values = {field: getattr(config, field) for field in fields}
    return {
        variables.name_of(field): str(value).lower() if isinstance(value, bool) else str(value)
        for field, value in values.items()
        if value is not None
    }


def _has_passed(result: Result) -> bool:
    return result.outcome.verdict == "passed"
