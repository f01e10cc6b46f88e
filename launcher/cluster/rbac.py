"""The rights that a launcher needs in a namespace, and no more: the Roles of k8s/manifests. Pure.

A test on a cluster compares them, in both directions, with the requests of a launcher that its API server saw.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from launcher.jobs import KIND_NAMES
from launcher.kinds import Kind, kind_named, kueue
from launcher.kube.resources import CLAIMS, CONFIG_MAPS, EVENTS, LEASES, NODES, PODS, QUOTAS, SERVICES, Resource

Verbs = Mapping[Resource, tuple[str, ...]]

LOGS = PODS._replace(plural="pods/log")
# For the parts of a job: a rank table, a name for its pods, the saved settings of an attempt.
_PART_VERBS = ("create", "delete", "get", "patch")


def namespace_rights(kinds: Iterable[Kind] = ()) -> Verbs:
    """Return the verbs of a Role: what every kind of job needs, and what `kinds` need."""
    common = {PODS: ("list", "watch"), LOGS: ("get",), EVENTS: ("list",)}
    parts = {CONFIG_MAPS: _PART_VERBS, SERVICES: _PART_VERBS, CLAIMS: ("get",)}
    return {**common, **parts, **{resource: verbs for kind in kinds for resource, verbs in kind.rights.items()}}


def preflight_rights() -> Verbs:
    """Return optional verbs of a Role, for the checks before a start: the server tries a pod, and shows its quotas.

    A user who can create jobs has pods created anyway.
    """
    return {PODS: ("create",), QUOTAS: ("list",)}


def cluster_rights(kinds: Iterable[Kind] = ()) -> Verbs:
    """Return the verbs of a ClusterRole, on objects outside namespaces.

    A launcher works without them and then sees less before a start: not that no node has enough NPUs, nor that a
    queue is closed.
    """
    own = {resource: verbs for kind in kinds for resource, verbs in kind.cluster_rights.items()}
    return {NODES: ("list",), **own}


ALL_KINDS = tuple(map(kind_named, KIND_NAMES))
_NEEDED, _OPTIONAL = namespace_rights(ALL_KINDS), preflight_rights()
_GRANTED = {
    resource: tuple(sorted({*_NEEDED.get(resource, ()), *_OPTIONAL.get(resource, ())}))
    for resource in dict.fromkeys((*_NEEDED, *_OPTIONAL))
}
KUBERNETES_VERBS = {resource: verbs for resource, verbs in _GRANTED.items() if not resource.is_custom}
"""The verbs on Kubernetes' own objects. The administrator of one namespace has these rights, and so can give them."""
CUSTOM_VERBS = {resource: verbs for resource, verbs in _GRANTED.items() if resource.is_custom}
"""The verbs on Volcano's objects, which the administrator of one namespace may lack."""
VERBS = {**KUBERNETES_VERBS, **CUSTOM_VERBS}
"""The verbs that the Roles of the chart and of k8s/manifests grant, for all kinds of job."""
CLUSTER_VERBS = cluster_rights(ALL_KINDS)
"""The verbs that their ClusterRole grants."""

KUEUE_VERBS: Verbs = kueue.RIGHTS
"""The verbs on Kueue's objects. The administrator of one namespace may lack them, so a separate Role grants them."""

RECOVER_VERBS: Verbs = {PODS: ("delete",), PODS._replace(plural="pods/status"): ("patch",)}
"""The verbs in the namespace that `recover` needs. No other command deletes pods, so a separate Role grants them."""
RECOVER_CLUSTER_VERBS: Verbs = {NODES: ("get",), LEASES: ("get",)}
"""The verbs by which `recover` shows that a node is silent."""

FETCH_VERBS: Verbs = {PODS: ("create", "delete"), PODS._replace(plural="pods/exec"): ("create", "get")}
"""The verbs by which `fetch`, `bundle`, `report` and `profile` reach a run's folder.

A user who has them has every pod's rights here.
"""


def rules(verbs: Verbs = VERBS) -> list[dict[str, Any]]:
    """Return rights as a Role writes them."""
    return [
        {"apiGroups": [resource.group], "resources": [resource.plural], "verbs": list(resource_verbs)}
        for resource, resource_verbs in verbs.items()
    ]
