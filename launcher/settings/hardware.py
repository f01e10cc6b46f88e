"""Hardware presets: the labels and the policy for MindCluster's scheduler, and the counts of NPUs that it accepts.

Plain values from MindCluster's documentation; docs/ascend.md names the pages, and says which values are unproven.
Older releases read the nodes' label `accelerator-type`; newer releases prefer a job's `huawei.com/schedule_policy`.
Each ignores the other's, so a job has both. A new preset needs its name, its values, and its row in docs/ascend.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

DEVICE_COUNTS: tuple[int, ...] = (1, 2, 4, 8)
"""NPUs of one pod without a preset: within an HCCS ring, or the whole node (Atlas 800)."""
CHIPS = "ascend-910"
"""The label `ring-controller.atlas` without a preset."""

HardwareName = Literal[
    "atlas-800-9000",
    "atlas-800-9010",
    "atlas-800-half",
    "atlas-300t",
    "atlas-800t-a2",
    "a2-box16",
    "a3",
    "a3-superpod",
]


@dataclass(frozen=True)
class Hardware:
    """One kind of server.

    Attributes:
        node_labels: labels of its nodes.
        chips: the value of the label `ring-controller.atlas`.
        schedule_policy: how its NPUs are connected, for newer releases of the scheduler.
        one_node: the counts of NPUs that a pod of a job on one node can have.
        several_nodes: the same for a job on several nodes.
        cpus: CPUs that a pod requests for each of its NPUs, unless the user says how many.
        resource: the Kubernetes resource of its NPUs.
    """

    node_labels: Mapping[str, str]
    chips: str
    schedule_policy: str
    one_node: tuple[int, ...]
    several_nodes: tuple[int, ...]
    cpus: int = 4
    resource: str = "huawei.com/Ascend910"


_UP_TO_8 = tuple(range(1, 9))
_A3_COUNTS = (1, *range(2, 17, 2))
# Images and their decoders, and rank 0's copies of the state: it has weights, momentum and average for each checkpoint.
_MEMORY_GIB = 16
_ARCH, _TYPE = "host-arch", "accelerator-type"

PRESETS: Mapping[str, Hardware] = MappingProxyType(
    {
        # Two HCCS rings of four 910A each.
        "atlas-800-9000": Hardware(
            {_ARCH: "huawei-arm", _TYPE: "module"}, CHIPS, "chip4-node8", DEVICE_COUNTS, DEVICE_COUNTS, cpus=8
        ),
        "atlas-800-9010": Hardware(
            {_ARCH: "huawei-x86", _TYPE: "module"}, CHIPS, "chip4-node8", DEVICE_COUNTS, DEVICE_COUNTS
        ),
        # One of the two.
        "atlas-800-half": Hardware({_TYPE: "half"}, CHIPS, "chip4-node4", (1, 2, 4), (1, 2, 4)),
        "atlas-300t": Hardware({_TYPE: "card"}, CHIPS, "chip1-node2", (1, 2), (2,)),
        "atlas-800t-a2": Hardware({_TYPE: "module-910b-8"}, "ascend-910b", "chip8-node8", _UP_TO_8, _UP_TO_8, cpus=8),
        "a2-box16": Hardware(
            {_TYPE: "module-910b-16"}, "ascend-910b", "chip8-node16", (*_UP_TO_8, 10, 12, 14, 16), (16,)
        ),
        "a3": Hardware({_TYPE: "module-a3-16"}, "ascend-910b", "chip2-node16", _A3_COUNTS, (16,)),
        "a3-superpod": Hardware({_TYPE: "module-a3-16-super-pod"}, "ascend-910b", "chip2-node16-sp", _A3_COUNTS, (16,)),
    }
)


def refusal(name: str | None, npus: int, nodes: int) -> str | None:
    """Return why a pod cannot have this count of NPUs, in words; None if it can.

    Args:
        name: of the preset, or None.
        nodes: how many the job has.
    """
    counts = DEVICE_COUNTS
    subject = "a pod"
    if name is not None:
        counts = PRESETS[name].several_nodes if nodes > 1 else PRESETS[name].one_node
        subject = f"on {name} a pod of a job with several nodes" if nodes > 1 else f"on {name} a pod"
    if npus in counts:
        return None
    advice = "for more, add --nodes" + ("" if name else ", and for other servers --hardware")
    return f"--npus {npus}: {subject} has {', '.join(map(str, counts))} NPUs; {advice}"


def requests(name: str | None, npus: int) -> dict[str, str]:
    """Return the CPUs and the memory that a pod requests unless the user says how much; they are no limits.

    An NPU does not count for a pod's quality of service: without requests, the pod would be the first to be evicted and
    killed (BestEffort). A preset's values are a share that a server has for each NPU; without a preset they fit a
    laptop.

    Args:
        name: of the preset, or None.
    """
    if name is None:
        return {"cpu": f"{100 * npus}m", "memory": f"{256 * npus}Mi"}
    return {"cpu": str(PRESETS[name].cpus * npus), "memory": f"{_MEMORY_GIB * npus}Gi"}


def without_preset(pods: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's recorded settings without its preset's: the preset of the next attempt gives them again.

    A record without a preset says `None`, so that new defaults of the namespace do not change the job. An unknown
    preset stays in the record: the launcher refuses it unless the user names another.
    """
    own = {"hardware": None, **pods}
    preset = PRESETS.get(str(own["hardware"]))
    if preset is not None and "node_selector" in own:
        theirs = {f"{key}={value}" for key, value in preset.node_labels.items()}
        own["node_selector"] = [text for text in own["node_selector"] if text not in theirs]
    return own
