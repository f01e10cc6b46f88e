"""The rights that a launcher needs in a namespace, and no more: the Role of k8s/manifests/rbac.yaml. Pure.

A test on a cluster compares them, both ways, with what its API server saw a launcher do.
"""

from collections.abc import Mapping
from typing import Any

from launcher.kube.resources import (
    BATCH_JOBS,
    COMMANDS,
    CONFIG_MAPS,
    EVENTS,
    POD_GROUPS,
    PODS,
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
    POD_GROUPS: ("get",),
    COMMANDS: ("create",),
}
"""Queues belong to no namespace, so that no Role can give a look at them: a launcher does without."""


def rules() -> list[dict[str, Any]]:
    """As a Role has them."""
    return [
        {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": list(verbs)}
        for resource, verbs in VERBS.items()
    ]
