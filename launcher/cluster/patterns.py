"""The meaning of messages of the cluster's components, which say what is wrong in their own words only. Pure.

To add a meaning, add its row to the table of the messages, the most exact first.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Pattern(NamedTuple):
    """What a message of the cluster's components means."""

    pattern: str
    rule: str
    text: str
    step: str


IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
# The words of containerd and of registries, the most exact first.
IMAGE_FAULTS = (
    Pattern(
        r"no match for platform|does not match the (specified|host) platform",
        "architecture",
        "it is built for another processor than the node's",
        "choose an --image for the node's processor (`kubectl get node -L kubernetes.io/arch`)",
    ),
    Pattern(
        "InvalidImageName|couldn't parse image",
        "image",
        "its name is not valid",
        "correct --image",
    ),
    Pattern(
        "ErrImageNeverPull|not present with pull policy of Never",
        "image",
        "the node does not have it, and --image-pull-policy Never pulls no image",
        "load it on the node, or choose another --image-pull-policy",
    ),
    Pattern(
        r"unauthorized|denied|authentication required|\b401\b|\b403\b",
        "image",
        "the registry refuses the node's login, or has no such image",
        "give --image-pull-secret, and check --image",
    ),
    Pattern(
        r"not found|manifest unknown|\b404\b",
        "image",
        "the registry has no such image",
        "check the name and the tag of --image",
    ),
    Pattern(
        r"no such host|dial tcp|i/o timeout|connection refused|TLS handshake|x509|server gave HTTP response",
        "image",
        "the node cannot reach the registry",
        "check the registry's name in --image, and the node's network",
    ),
)
CONTAINER_FAULTS = (
    Pattern(
        r'secret "(?P<name>[^"]+)" not found|configmap "(?P<name2>[^"]+)" not found|couldn\'t find key',
        "missing-object",
        "an object that the pod names does not exist",
        "create it, or take it out of the job's options",
    ),
    Pattern(
        "runAsNonRoot",
        "pod-security",
        "the image's user is root, and the pod must not run as root",
        "choose another --image, or give --user",
    ),
    Pattern("exec format error", "architecture", "the image is built for another processor", "choose another --image"),
    Pattern(
        "executable file not found|no such file or directory",
        "entry-point",
        "the image does not have the program that the pod starts",
        "choose an --image with the trainer, and check the command in the --overlay",
    ),
)
VOLUME_FAULTS = (
    Pattern(
        "ReadWriteOncePod",
        "claim",
        "another pod uses a claim that only one pod at a time can use (ReadWriteOncePod)",
        "wait until the other pod ends, or choose a claim with ReadWriteMany",
    ),
    Pattern(
        "Multi-Attach|already (attached|used) (to|by)",
        "claim",
        "a claim is in use on another node, and its access mode allows one node only",
        "choose a claim with ReadWriteMany, or wait until the other pod ends",
    ),
    Pattern(
        "volume node affinity conflict|PersistentVolume's node affinity",  # older words, and Kubernetes 1.36's
        "claim",
        "a volume is on a node that the pod cannot use",
        "choose another claim, or another --node-selector",
    ),
    Pattern(
        'persistentvolumeclaim "[^"]+" not found',
        "claim",
        "a claim that the pod names does not exist",
        "create the claim, or choose another one (--data-claim, --output-claim)",
    ),
    Pattern(
        "unbound immediate PersistentVolumeClaims",
        "claim",
        "a claim that the pod names has no volume yet",
        "see `kubectl describe pvc`",
    ),
)
# Ascend/mind-cluster, component/ascend-for-volcano (read in September 2026).
MINDCLUSTER_FAULTS = (
    Pattern(
        "NPUResourceShortage|node idle is",
        "mindcluster",
        "MindCluster's scheduler finds too few free NPUs",
        "wait until other jobs end, or ask for fewer --npus",
    ),
    Pattern(
        "not stable:|not same node idle",
        "mindcluster",
        "MindCluster's scheduler and the node count different NPUs: some are unhealthy, or still held",
        "ask the administrator to look at the device plugin's log and at `npu-smi info` of that node",
    ),
    Pattern(
        "npu topology not meet job require|network unhealthy card",
        "mindcluster",
        "the free NPUs of the nodes are not connected as the job needs them",
        "ask for fewer --npus, or wait until whole groups are free",
    ),
    Pattern(
        "policyHandler is nil",
        "mindcluster",
        "MindCluster's scheduler does not know the value of the label accelerator-type",
        "check --hardware",
    ),
    Pattern(
        r"npu num should small than|not in map\[",
        "mindcluster",
        "MindCluster's scheduler does not give that number of NPUs to a pod",
        "ask for 1, 2, 4 or 8 --npus",
    ),
)


def first_match(patterns: Iterable[Pattern], message: str) -> Pattern | None:
    """Return the first row whose pattern finds something in the message; None if none does."""
    return next((row for row in patterns if re.search(row.pattern, message)), None)
