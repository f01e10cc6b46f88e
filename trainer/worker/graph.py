"""Whether a run's steps are captured: `--graph auto` asks the record of `prove` in the folder of runs."""

import os
from pathlib import Path

import torch.distributed as dist

from trainer.devices.device import Device
from trainer.distributed.process_group import all_gather_object
from trainer.environment.facts import read_facts
from trainer.records.proof_record import FoundProof, ProvenDevice, find_proof
from trainer.records.run_records import say
from trainer.shared.config import TrainConfig
from trainer.shared.container import node_name
from trainer.shared.errors import UsageError
from trainer.training.precision import capture_obstacle
from trainer.worker.task import WorkerTask

CAPTURED_STEP = "captured-step"
"""The check of `prove` that compares captured steps with eager ones."""


def proof_of(runs: Path, runtime: Device) -> FoundProof:
    """Return what `prove` has shown about this kind of device with these versions."""
    facts = read_facts(os.environ, npu_smi_timeout_s=None)
    return find_proof(runs, ProvenDevice.of(runtime.name(), facts.versions))


def captures_steps(task: WorkerTask, config: TrainConfig, runtime: Device, group: dist.ProcessGroup | None) -> bool:
    """Return whether the run's steps are captured, the same on all ranks.

    With `auto` they are if captured steps have passed their check on each rank's kind of device. On a device that could
    capture steps, one line says what was decided and why.

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
    own = obstacle or proof_of(task.run.parent, runtime).obstacle(CAPTURED_STEP, node_name())
    reason = next(filter(None, all_gather_object(own, group)), None)
    if task.rank == 0 and obstacle is None:
        say("graph", auto="off" if reason else "on", reason=reason or f"{CAPTURED_STEP} has passed on {runtime.name()}")
    return reason is None
