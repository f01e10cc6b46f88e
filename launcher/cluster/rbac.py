"""The rights that a launcher needs in a namespace, and no more: the Role of k8s/manifests/rbac.yaml. Pure.

A test on a cluster compares them, both ways, with what its API server saw a launcher do.
"""

from collections.abc import Mapping
from typing import Any

from launcher.kube.resources import (
    BATCH_JOBS,
    CLAIMS,
    COMMANDS,
    CONFIG_MAPS,
    EVENTS,
    NODES,
    POD_GROUPS,
    PODS,
    QUEUES,
    SERVICES,
    VOLCANO_JOBS,
    Resource,
)

LOGS = PODS._replace(plural="pods/log")
_JOB = ("create", "delete", "get", "list", "patch", "watch")
# Of a job's parts: a rank table, a name for its pods, the settings of an attempt that is started anew.
_PART = ("create", "delete", "get", "patch")

VERBS: Mapping[Resource, tuple[str, ...]] = {
    BATCH_JOBS: _JOB,
    VOLCANO_JOBS: _JOB,
    PODS: ("list", "watch"),
    LOGS: ("get",),
    EVENTS: ("list",),
    CONFIG_MAPS: _PART,
    SERVICES: _PART,
    CLAIMS: ("get",),
    POD_GROUPS: ("get",),
    COMMANDS: ("create",),
}
"""Those of a namespace: a Role can give them."""

CLUSTER_VERBS: Mapping[Resource, tuple[str, ...]] = {NODES: ("list",), QUEUES: ("get",)}
"""What belongs to no namespace, so that it takes a ClusterRole: a launcher does without, and then sees less before a
start: not that no node has so many NPUs, nor that a queue is closed."""


def rules(verbs: Mapping[Resource, tuple[str, ...]] = VERBS) -> list[dict[str, Any]]:
    """As a Role has them."""
    return [
        {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": list(verbs)}
        for resource, verbs in verbs.items()
    ]
