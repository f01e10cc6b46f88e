"""What `prove` has shown about a rank's device, by the record in the folder of runs."""

import os
from pathlib import Path

from trainer.devices.device import Device
from trainer.environment.facts import read_facts
from trainer.records.proof_record import FoundProof, ProvenDevice, find_proof


def proof_of(runs: Path, runtime: Device) -> FoundProof:
    """Return what `prove` has shown about this kind of device with these versions.

    It reads nothing for a CPU: its steps are not captured, and its runs resume bit for bit without a proof.
    """
    name = runtime.name()
    if runtime.kind == "cpu":
        return FoundProof(ProvenDevice.of(name, {}), runs, {}, problem="a run on a CPU needs no proof")
    facts = read_facts(os.environ, npu_smi_timeout_s=None)
    return find_proof(runs, ProvenDevice.of(name, facts.versions))
