"""Whether a run's steps are captured: `--graph auto` asks the record of `prove` in the folder of runs."""

from collections.abc import Sequence

import torch.distributed as dist

from trainer.devices.device import Device
from trainer.distributed.process_group import all_gather_object
from trainer.records.proof_record import FoundProof
from trainer.records.run_records import say
from trainer.shared.config import TrainConfig
from trainer.shared.container import node_name
from trainer.shared.errors import UsageError
from trainer.training.precision import capture_obstacle, precision_name
from trainer.worker.task import WorkerTask


def captured_checks(precision: str, world_size: int) -> tuple[str, ...]:
    """Return the checks of `prove` that show captured steps in an arithmetic, on one device or on several."""
    several = ("captured-parallel",) if world_size > 1 else ()
    return "captured-step", f"captured-{precision.lower()}", *several


def captures_steps(
    task: WorkerTask, config: TrainConfig, runtime: Device, proof: FoundProof, group: dist.ProcessGroup | None
) -> bool:
    """Return whether the run's steps are captured, the same on all ranks.

    With `auto` they are if captured steps in the run's arithmetic have passed their checks on each rank's kind of
    device. On a device that could capture steps, one line says what was decided and why.

    Raises:
        UsageError: the user asks for it, and the device cannot do it.
    """
    if config.graph == "off" or config.mode == "eval":
        return False
    compiled = "a compiled step has not been captured yet" if config.compile else None
    obstacle = compiled or runtime.graph_obstacle() or capture_obstacle(config, runtime)
    if config.graph == "on":
        if obstacle is not None:
            raise UsageError(f"--graph on: {obstacle}: leave --graph off")
        return True
    checks = captured_checks(precision_name(config, runtime), task.world_size)
    own = obstacle or _lacking_proof(proof, checks)
    reason = next(filter(None, all_gather_object(own, group)), None)
    if task.rank == 0 and obstacle is None:
        passed = f"{', '.join(checks)} passed on {runtime.name()}"
        say("graph", auto="off" if reason else "on", reason=reason or passed)
    return reason is None


def _lacking_proof(proof: FoundProof, checks: Sequence[str]) -> str | None:
    """Return why the first of the checks that has not passed on this machine has not; None if all have."""
    return next(filter(None, (proof.obstacle(check, node_name()) for check in checks)), None)
