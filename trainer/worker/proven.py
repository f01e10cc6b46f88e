"""What `prove` has shown about a rank's device, by the record in the folder of runs."""

import os
from pathlib import Path

from trainer.devices.device import Device
from trainer.environment.facts import read_facts
from trainer.records.proof_record import FoundProof, ProvenDevice, find_proof
from trainer.shared.container import node_name

RESUMED = "kill-and-resume"
"""The check of `prove` that compares a killed and resumed run with an undisturbed one."""


def proof_of(runs: Path, runtime: Device) -> FoundProof:
    """Return what `prove` has shown about this kind of device with these versions."""
    facts = read_facts(os.environ, npu_smi_timeout_s=None)
    return find_proof(runs, ProvenDevice.of(runtime.name(), facts.versions))


def resumes_in_small(runs: Path, runtime: Device) -> bool:
    """Return whether a small killed run has continued bit for bit on such a device."""
    return proof_of(runs, runtime).obstacle(RESUMED, node_name()) is None
