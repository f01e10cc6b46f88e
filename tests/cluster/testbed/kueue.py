"""The real Kueue on a cluster of the test bed: its definitions, its webhooks, its process, and queues for a namespace.

It acts only in namespaces with its label, so that jobs of other tests go past it. Kueue reads its metrics' certificate
from a fixed folder below /etc, which only its own process sees here.
"""

import base64
import json
import shlex
from collections.abc import Iterator, Mapping
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

LABEL = "pnas-test/kueue"
NAMESPACE = "kueue-system"
PORT = 9443
API = "kueue.x-k8s.io/v1beta2"
METRICS_CERTIFICATES = "kueue/metrics/certs"
CONFIGURATION: dict[str, Any] = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta2",
    "kind": "Configuration",
    "namespace": NAMESPACE,
    "health": {"healthProbeBindAddress": "127.0.0.1:11261"},
    "metrics": {"bindAddress": "127.0.0.1:11262"},
    "leaderElection": {"leaderElect": False},
    "internalCertManagement": {"enable": False},
    "integrations": {"frameworks": ["batch/job"]},
    "featureGates": {"VisibilityOnDemand": False},
}


@dataclass(frozen=True)
class Kueue:
    """Kueue on a running cluster."""

    cluster: Cluster

    def make_queue(self, namespace: str, name: str, quota: Mapping[str, str]) -> None:
        """Create a LocalQueue, and a ClusterQueue named as its namespace where a higher priority preempts a lower one.

        Args:
            quota: the amount of each resource; a job that asks for another is never started.
        """
        resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
        flavor = {"name": "any-node", "resources": resources}
        cluster_queue = {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": [*quota], "flavors": [flavor]}],
        }
        apply(
            self.cluster,
            _object("ResourceFlavor", {"name": "any-node"}, {}),
            _object("ClusterQueue", {"name": namespace}, cluster_queue),
            _object("LocalQueue", {"name": name, "namespace": namespace}, {"clusterQueue": namespace}),
        )
        wait = ("--for=condition=Active", f"localqueues.kueue.x-k8s.io/{name}", "--namespace", namespace)
        self.cluster.kubectl("wait", *wait, "--timeout=60s")

    def workload(self, namespace: str, job: str) -> dict[str, Any]:
        """Return the Workload of a job."""
        uid = self.cluster.get("job", job, "--namespace", namespace)["metadata"]["uid"]
        words = ("workloads.kueue.x-k8s.io", "--namespace", namespace, "--selector", f"kueue.x-k8s.io/job-uid={uid}")
        [workload] = self.cluster.get(*words)["items"]
        return dict(workload)

    def preemptions(self, namespace: str, job: str) -> int:
        """Return how often a job was preempted, by Kueue's own count."""
        status = self.workload(namespace, job)["status"]
        evictions = status.get("schedulingStats", {}).get("evictions", ())
        return sum(item["count"] for item in evictions if item["reason"] == "Preempted")


@contextmanager
def kueue(cluster: Cluster) -> Iterator[Kueue]:
    """Run Kueue on the test bed while the context lasts; the definitions and their objects stay.

    Raises:
        BuildError: it cannot be built.
        StartError: it does not start.
        NotABedError: the cluster is not the test bed.
    """
    folder = cluster.folder / "kueue"
    certificates = folder / "etc" / METRICS_CERTIFICATES
    certificates.mkdir(parents=True, exist_ok=True)
    program = binaries.kueue()
    authority = Authority(folder, "ca")
    pair = authority.pair("kueue-webhook", addresses=("127.0.0.1",))
    (certificates / "tls.crt").write_bytes(pair.certificate)
    (certificates / "tls.key").write_bytes(pair.key)
    configuration = folder / "configuration.yaml"
    webhook = {"webhook": {"port": PORT, "host": "127.0.0.1", "certDir": str(certificates)}}
    configuration.write_text(yaml.safe_dump({**CONFIGURATION, **webhook}))
    kubeconfig = _kubeconfig(cluster, folder)
    apply_definitions(cluster, *program.glob("kueue.x-k8s.io_*.yaml"))
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    inside = ["nsenter", f"--net={cluster.nodes[0].namespaces.network}", "--", "unshare", "--mount", "sh", "-ec"]
    command = [str(program / "kueue"), f"--config={configuration}", f"--kubeconfig={kubeconfig}"]
    overlay = f"mount -t overlay overlay -o lowerdir={shlex.quote(str(folder / 'etc'))}:/etc /etc"
    processes = Processes(cluster.folder / "logs")
    webhooks = list(_webhooks(program, authority.certificate.read_bytes()))
    try:
        processes.start("kueue", [*inside, f"{overlay} && exec {shlex.join(command)}"])
        apply(cluster, *webhooks)
        processes.until("kueue", lambda: _answers(cluster))
        yield Kueue(cluster)
    finally:
        # Without a running webhook, they would refuse all objects of the next Kueue.
        names = [f"{item['kind']}/{item['metadata']['name']}".lower() for item in webhooks]
        cluster.kubectl("delete", *names, "--ignore-not-found")
        processes.stop("kueue")


def _kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Write the administrator's kubeconfig for use in the cluster's network namespace."""
    config = cluster.config
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{API_PORT}"
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


def _webhooks(program: Path, authority: bytes) -> Iterator[dict[str, Any]]:
    """Yield Kueue's own webhook configurations, for the kinds used here, at the address of this process."""
    for configuration in yaml.safe_load_all((program / "manifests.yaml").read_text()):
        kept = []
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            groups = {group for rule in webhook["rules"] for group in rule["apiGroups"]}
            if not groups <= {"batch", "kueue.x-k8s.io"}:
                continue
            client = {"url": f"https://127.0.0.1:{PORT}{path}", "caBundle": base64.b64encode(authority).decode()}
            kept.append({**webhook, "clientConfig": client, "namespaceSelector": {"matchLabels": {LABEL: "true"}}})
        yield {**configuration, "metadata": {"name": f"kueue-{configuration['kind'].lower()}"}, "webhooks": kept}


def _object(kind: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": dict(metadata), "spec": dict(spec)}


def _answers(cluster: Cluster) -> bool:
    """Return whether Kueue's webhook judges an object, in a server dry run."""
    path = cluster.folder / "kueue" / "tried.yaml"
    path.write_text(yaml.safe_dump(_object("ResourceFlavor", {"name": "tried"}, {})))
    try:
        cluster.kubectl("create", "--dry-run=server", "--filename", str(path))
    except StartError:
        return False
    return True
