"""`python -m docs.manifests` writes k8s/manifests/: what a cluster without Helm is given, and jobs to begin with.

The jobs are what `python -m launcher render` prints. The files cannot disagree with the launcher: a test writes them
anew and compares.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.cluster.rbac import CLUSTER_VERBS, rules
from launcher.kinds.labels import MANAGED
from launcher.manifests.offline import manifests_of
from launcher.manifests.render import to_yaml

FOLDER = Path(__file__).parents[1] / "k8s" / "manifests"
ACCOUNT = "pnas-launcher"
# Whoever applies these files sets the image's name.
IMAGE = "registry.example/pnas:0.1.0"
JOBS: dict[str, dict[str, Any]] = {
    "job-1-npu.yaml": {"backend": "batch", "npus": 1, "mode": "full", "name": "pnas-1-npu"},
    "job-8-npus.yaml": {"backend": "batch", "npus": 8, "mode": "full", "name": "pnas-8-npus"},
    "volcano-job-8-npus.yaml": {"backend": "volcano", "npus": 8, "mode": "full", "name": "pnas-8-npus"},
}
_LABELS = {"app.kubernetes.io/name": MANAGED["app.kubernetes.io/name"]}


def files() -> dict[str, str]:
    """The text of each file."""
    written = {"rbac.yaml": list(_rights()), "cluster-role.yaml": [_sight()], "claims.yaml": list(_claims())}
    written |= {name: manifests_of({**options, "image": IMAGE}, None) for name, options in JOBS.items()}
    return {name: f"{_header(name)}\n{to_yaml(objects)}" for name, objects in written.items()}


def _header(name: str) -> str:
    said = "# Written by `python -m docs.manifests`."
    if name in JOBS:
        words = " ".join(f"--{option} {value}" for option, value in JOBS[name].items())
        return f"{said}\n# It is `python -m launcher render {words} --image {IMAGE}`."
    if name == "cluster-role.yaml":
        bound = (
            f"kubectl create clusterrolebinding {ACCOUNT} --clusterrole {ACCOUNT} --serviceaccount NAMESPACE:{ACCOUNT}"
        )
        return f"{said} kubectl apply --filename {name}, and if you like:\n# {bound}"
    return f"{said} kubectl apply --namespace NAMESPACE --filename {name}"


def _rights() -> Iterator[dict[str, Any]]:
    """Who may use the launcher in a namespace: bind whom you like to the Role."""
    api, meta = "rbac.authorization.k8s.io", {"name": ACCOUNT, "labels": _LABELS}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    yield {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": meta, "rules": rules()}
    yield {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": api, "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT}],
    }


def _sight() -> dict[str, Any]:
    """What belongs to no namespace: who may look at it is told of too few NPUs, or a closed queue, before a start."""
    meta = {"name": ACCOUNT, "labels": _LABELS}
    rights = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta}
    return {**rights, "rules": rules(CLUSTER_VERBS)}


def _claims() -> Iterator[dict[str, Any]]:
    """Both are shared by the pods of several nodes. ImageNet has 150 GB."""
    for name, size in (("pnas-data", "200Gi"), ("pnas-output", "100Gi")):
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "labels": _LABELS},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}},
        }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
