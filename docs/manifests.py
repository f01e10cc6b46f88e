"""The generated files of k8s/manifests: a namespace's objects for clusters without Helm, and first jobs.

The jobs are what `python -m launcher render` prints.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.cluster.rbac import (
    CLUSTER_VERBS,
    CUSTOM_VERBS,
    FETCH_VERBS,
    KUBERNETES_VERBS,
    KUEUE_VERBS,
    RECOVER_CLUSTER_VERBS,
    RECOVER_VERBS,
    Verbs,
    rules,
)
from launcher.commands.render import manifests_of
from launcher.kinds.labels import MANAGED
from launcher.manifests.render import to_stream

FOLDER = Path(__file__).parents[1] / "k8s" / "manifests"
ACCOUNT = "pnas-launcher"
# A placeholder: the user replaces it before `kubectl apply`.
IMAGE = "registry.example/pnas:0.1.0"
JOBS: dict[str, dict[str, Any]] = {
    "job-1-npu.yaml": {"backend": "batch", "npus": 1, "mode": "full", "name": "pnas-1-npu"},
    "job-8-npus.yaml": {"backend": "batch", "npus": 8, "mode": "full", "name": "pnas-8-npus"},
    "volcano-job-8-npus.yaml": {"backend": "volcano", "npus": 8, "mode": "full", "name": "pnas-8-npus"},
}
_LABELS = {"app.kubernetes.io/name": MANAGED["app.kubernetes.io/name"]}


def files() -> dict[Path, str]:
    """Return the text of each file."""
    objects = {
        "rbac.yaml": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(ACCOUNT)},
            *_role(ACCOUNT, KUBERNETES_VERBS),
        ],
        "rbac-volcano.yaml": list(_role(f"{ACCOUNT}-volcano", CUSTOM_VERBS)),
        "rbac-kueue.yaml": list(_role(f"{ACCOUNT}-kueue", KUEUE_VERBS)),
        "cluster-role.yaml": [_cluster_role(ACCOUNT, CLUSTER_VERBS)],
        "rbac-recover.yaml": [
            *_role(f"{ACCOUNT}-recover", RECOVER_VERBS),
            _cluster_role(f"{ACCOUNT}-recover", RECOVER_CLUSTER_VERBS),
        ],
        "rbac-fetch.yaml": list(_role(f"{ACCOUNT}-fetch", FETCH_VERBS)),
        "claims.yaml": list(_claims()),
    }
    objects |= {name: manifests_of({**options, "image": IMAGE}, None) for name, options in JOBS.items()}
    return {FOLDER / name: f"{_header(name)}\n{to_stream(items)}" for name, items in objects.items()}


def _header(name: str) -> str:
    origin = "# Written by `make generate`."
    if name in JOBS:
        words = " ".join(f"--{option} {value}" for option, value in JOBS[name].items())
        return f"{origin}\n# It is `python -m launcher render {words} --image {IMAGE}`."
    roles = {"cluster-role.yaml": (ACCOUNT, ""), "rbac-recover.yaml": (f"{ACCOUNT}-recover", " --namespace NAMESPACE")}
    if name in roles:
        role, place = roles[name]
        bind = f"kubectl create clusterrolebinding {role} --clusterrole {role} --serviceaccount NAMESPACE:{ACCOUNT}"
        return f"{origin} Optional: kubectl apply{place} --filename {name}, then\n# {bind}"
    others = {
        "rbac-volcano.yaml": "a cluster with Volcano",
        "rbac-kueue.yaml": "jobs in Kueue's queues",
        "rbac-fetch.yaml": "users who fetch runs from the claim",
    }
    if name in others:
        origin = f"{origin} For {others[name]}:"
    return f"{origin} kubectl apply --namespace NAMESPACE --filename {name}"


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _LABELS}


def _role(name: str, verbs: Verbs) -> Iterator[dict[str, Any]]:
    """Yield a Role with these rights, and its binding to the account. A RoleBinding gives it to further users."""
    api = "rbac.authorization.k8s.io"
    yield {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": _meta(name), "rules": rules(verbs)}
    yield {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": _meta(name),
        "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT}],
    }


def _cluster_role(name: str, verbs: Verbs) -> dict[str, Any]:
    """Return rights on objects outside namespaces, or of other namespaces; an administrator binds them."""
    rights = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": _meta(name)}
    return {**rights, "rules": rules(verbs)}


def _claims() -> Iterator[dict[str, Any]]:
    """Yield both claims, which the pods of several nodes share. ImageNet has 150 GB."""
    for name, size in (("pnas-data", "200Gi"), ("pnas-output", "100Gi")):
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": _meta(name),
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}},
        }
