"""Volcano on a cluster of the test bed: its definitions, its rights, its webhooks, and its three processes.

The processes are the stand-in's (`tests.cluster.testbed.volcano`), or real ones if PNAS_TEST_VOLCANO_BIN names a folder
with `vc-controller-manager`, `vc-scheduler`, `vc-webhook-manager` and `crd/*.yaml` of the same release. The code for
the real ones follows the needs of such a Volcano (commit ed72c7c8), but has not been run in this form.
"""

import base64
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.testbed.applying import apply, apply_definitions
from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.certificates import Authority
from tests.cluster.testbed.nodes.control_plane import API_PORT
from tests.cluster.testbed.nodes.processes import Processes, StartError
from tests.cluster.testbed.volcano import LABEL

REAL = "PNAS_TEST_VOLCANO_BIN"
CONTROLLER, SCHEDULER, WEBHOOK = "vc-controller-manager", "vc-scheduler", "vc-webhook-manager"
NAMESPACE, ACCOUNT = "volcano-system", "volcano"
PORT = 8443
# For each path: the kind of configuration, the operations, and the resource.
ADMISSION = {
    "/jobs/mutate": ("Mutating", ("CREATE",), "batch.volcano.sh/v1alpha1/jobs"),
    "/jobs/validate": ("Validating", ("CREATE", "UPDATE"), "batch.volcano.sh/v1alpha1/jobs"),
    "/queues/mutate": ("Mutating", ("CREATE",), "scheduling.volcano.sh/v1beta1/queues"),
    "/queues/validate": ("Validating", ("CREATE", "UPDATE", "DELETE"), "scheduling.volcano.sh/v1beta1/queues"),
}
SCHEDULER_CONFIGURATION = """
actions: "enqueue, allocate, backfill"
tiers:
- plugins: [{name: priority}, {name: gang}, {name: conformance}]
- plugins: [{name: overcommit}, {name: drf}, {name: predicates}, {name: proportion}, {name: nodeorder}, {name: binpack}]
"""
# The controllers whose types are missing in v1.12.1 are switched off.
CONTROLLERS = "*,-cronjob-controller,-colocation-config-controller,-sharding-controller"
RULES = [
    {"apiGroups": [""], "resources": ["namespaces", "nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete", "get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods/binding", "podtemplates"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": [""], "resources": ["configmaps", "secrets", "services"], "verbs": ["create", "delete"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["create", "delete"]},
    *(
        {"apiGroups": [f"{group}.volcano.sh"], "resources": ["*"], "verbs": ["*"]}
        for group in ("batch", "bus", "scheduling")
    ),
]


@dataclass(frozen=True)
class Volcano:
    """Volcano on a running cluster; on another cluster than the test bed, its administrator's.

    Attributes:
        labels: the labels of namespaces in which it acts.
    """

    cluster: Cluster
    labels: Mapping[str, str]
    processes: Processes | None
    commands: Mapping[str, Sequence[str]]

    def stop(self, name: str) -> None:
        """End one of its processes: CONTROLLER, SCHEDULER.

        Raises:
            NotABedError: the cluster is not the test bed.
        """
        self._own().stop(name)

    def start(self, name: str) -> None:
        """Start a process that has been stopped.

        Raises:
            NotABedError: the cluster is not the test bed.
        """
        self._own().start(name, self.commands[name])

    def _own(self) -> Processes:
        self.cluster.inside("Volcano's own processes")
        assert self.processes is not None
        return self.processes


@contextmanager
def volcano(cluster: Cluster) -> Iterator[Volcano]:
    """Run Volcano on a cluster while the context lasts; the definitions and their objects stay.

    Raises:
        BuildError: the definitions cannot be made.
        StartError: it does not start.
        NotABedError: the cluster is not the test bed, and has no Volcano.
    """
    if cluster.bed is None:
        if "jobs.batch.volcano.sh" not in cluster.kubectl("get", "crd", "--output=name"):
            cluster.inside("Volcano, which it does not serve")
        yield Volcano(cluster, {LABEL: "true"}, None, {})
        return
    folder = cluster.folder / "volcano"
    folder.mkdir(exist_ok=True)
    real = Path(os.environ[REAL]) if REAL in os.environ else None
    apply_definitions(cluster, real / "crd" if real else binaries.volcano_crds())
    kubeconfig = _identity(cluster, folder, real=real is not None)
    authority = Authority(folder, "ca")
    authority.files("webhook", "volcano-webhook", addresses=("127.0.0.1",))
    inside = ["nsenter", f"--net={cluster.nodes[0].namespaces.network}", "--"]
    commands = _real_commands(real, folder, kubeconfig) if real else _commands(folder, kubeconfig)
    processes = Processes(cluster.folder / "logs")
    installed = Volcano(
        cluster, {LABEL: "true"}, processes, {name: [*inside, *words] for name, words in commands.items()}
    )
    try:
        # The webhook's configurations must exist before the real one starts.
        apply(cluster, *_configurations(authority.certificate.read_bytes()))
        for name in (WEBHOOK, SCHEDULER, CONTROLLER):
            installed.start(name)
        processes.until(WEBHOOK, lambda: _succeeds(lambda: _try_queue(cluster, folder)))
        processes.until(CONTROLLER, lambda: _default_queue_is_open(cluster))
        yield installed
    finally:
        # A configuration without a running webhook would refuse all Jobs of the next Volcano.
        _delete_configurations(cluster)
        processes.stop_all()


def _identity(cluster: Cluster, folder: Path, *, real: bool) -> Path:
    """Write a kubeconfig with the rights that Volcano needs, for use in the cluster's network namespace."""
    rbac = "rbac.authorization.k8s.io"
    role = "cluster-admin" if real else "volcano-stand-in"
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": "volcano-stand-in"}, "rules": RULES},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "volcano"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [account],
        },
    ]
    apply(cluster, *objects)
    token = cluster.kubectl("create", "token", ACCOUNT, "--namespace", NAMESPACE, "--duration=24h").strip()
    ca = base64.b64encode((cluster.folder / "pki" / "ca.crt").read_bytes()).decode()
    server = {"server": f"https://127.0.0.1:{API_PORT}", "certificate-authority-data": ca}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": server}],
        "users": [{"name": ACCOUNT, "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": ACCOUNT}}],
        "current-context": "testbed",
    }
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def _commands(folder: Path, kubeconfig: Path) -> dict[str, list[str]]:
    program = [sys.executable, "-m", "tests.cluster.testbed.volcano"]
    tls = [f"--certificate={folder / 'webhook.crt'}", f"--key={folder / 'webhook.key'}", f"--port={PORT}"]
    return {
        CONTROLLER: [*program, "controller", f"--kubeconfig={kubeconfig}"],
        SCHEDULER: [*program, "scheduler", f"--kubeconfig={kubeconfig}"],
        WEBHOOK: [*program, "webhook", f"--kubeconfig={kubeconfig}", *tls],
    }


def _real_commands(real: Path, folder: Path, kubeconfig: Path) -> dict[str, list[str]]:
    """Return the real programs' command lines; health and metrics get separate ports, as all share one address."""
    configuration = folder / "scheduler.yaml"
    configuration.write_text(SCHEDULER_CONFIGURATION)

    def common(health: int) -> list[str]:
        healthz = ["--enable-healthz=true", f"--healthz-address=127.0.0.1:{health}"]
        return [f"--kubeconfig={kubeconfig}", *healthz, "-v=3", "--logtostderr"]

    controller = ["--leader-elect=false", "--listen-address=127.0.0.1:18081", f"--controllers={CONTROLLERS}"]
    scheduler = ["--leader-elect=false", "--listen-address=127.0.0.1:18080", "--cache-dumper=false"]
    tls = [f"--tls-cert-file={folder / 'webhook.crt'}", f"--tls-private-key-file={folder / 'webhook.key'}"]
    webhook = [f"--webhook-url=https://127.0.0.1:{PORT}", "--listen-address=127.0.0.1", f"--port={PORT}", *tls]
    webhook += [f"--ca-cert-file={folder / 'ca.crt'}", f"--enabled-admission={','.join(ADMISSION)}"]
    return {
        CONTROLLER: [str(real / CONTROLLER), *common(11251), *controller],
        SCHEDULER: [str(real / SCHEDULER), *common(11252), f"--scheduler-conf={configuration}", *scheduler],
        WEBHOOK: [str(real / WEBHOOK), *common(11253), *webhook],
    }


def _configurations(authority: bytes) -> list[dict[str, Any]]:
    """Return the webhook configurations, under the names that the real webhook looks for."""
    configurations = []
    for path, (kind, operations, resource) in ADMISSION.items():
        group, version, plural = resource.split("/")
        rule = {"operations": list(operations), "apiGroups": [group], "apiVersions": [version], "resources": [plural]}
        client = {"url": f"https://127.0.0.1:{PORT}{path}", "caBundle": base64.b64encode(authority).decode()}
        webhook = {
            "name": f"{path.rpartition('/')[2]}{plural.removesuffix('s')}.volcano.sh",
            "admissionReviewVersions": ["v1"],
            "clientConfig": client,
            "failurePolicy": "Fail",
            "matchPolicy": "Equivalent",
            # A queue belongs to no namespace: the selector never excludes it.
            "namespaceSelector": {"matchLabels": {LABEL: "true"}},
            "rules": [rule],
            "sideEffects": "None",
            "timeoutSeconds": 10,
        }
        configurations.append(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": f"{kind}WebhookConfiguration",
                "metadata": {"name": f"volcano-admission-service{path.replace('/', '-')}"},
                "webhooks": [webhook],
            }
        )
    return configurations


def _delete_configurations(cluster: Cluster) -> None:
    for path, (kind, _operations, _resource) in ADMISSION.items():
        name = f"volcano-admission-service{path.replace('/', '-')}"
        cluster.kubectl("delete", f"{kind}WebhookConfiguration".lower(), name, "--ignore-not-found")


def _try_queue(cluster: Cluster, folder: Path) -> None:
    """Let the webhook check a queue in a server dry run."""
    path = folder / "queue.yaml"
    queue = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "tried"}}
    path.write_text(yaml.safe_dump(queue))
    cluster.kubectl("create", "--dry-run=server", "--filename", str(path))


def _default_queue_is_open(cluster: Cluster) -> bool:
    queues = cluster.get("queues.scheduling.volcano.sh")["items"]
    return any(
        queue["metadata"]["name"] == "default" and queue.get("status", {}).get("state") == "Open" for queue in queues
    )


def _succeeds(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except StartError:
        return False
    return True
