"""Start and stop a whole Kubernetes: control plane and nodes, in the order in which they need each other."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.testbed import binaries, images
from tests.cluster.testbed.node import Node
from tests.cluster.testbed.npu import RESOURCE
from tests.cluster.testbed.pki import Authority, service_account_keys
from tests.cluster.testbed.processes import Namespaces, Processes, StartError, only_child, output_of
from trainer.topology.ports import free_port

RUNS = Path("/var/tmp/pnas-testbed")
PREFIX = "pnas-testbed-"
API_ADDRESS = "10.123.0.1"
API_PORT = 6443
ETCD = "http://127.0.0.1:2379"
SERVICES = "10.96.0.0/16"
# Every request of anybody but the cluster's own parts, without bodies: which rights the launcher really uses.
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Cluster:
    """One that runs.

    Attributes:
        folder: everything of it: logs, certificates, the nodes' disks.
        kubeconfig: of its administrator.
    """

    folder: Path
    kubeconfig: Path
    programs: Path
    nodes: tuple[Node, ...]

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints.

        Raises:
            StartError: it failed.
        """
        return output_of([str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments])


@contextmanager
def running(*, nodes: int = 2, npus: int = 8) -> Iterator[Cluster]:
    """A cluster, for as long as the context lasts; it ends with this process whatever happens to it.

    Args:
        npus: of each node; simulated.

    Raises:
        StartError: it cannot be started.
        BuildError: its programs cannot be built.
    """
    programs = binaries.kubernetes()
    RUNS.mkdir(parents=True, exist_ok=True)
    clean_up()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=RUNS))
    processes = Processes(folder / "logs")
    try:
        (folder / "owner").write_text(str(os.getpid()))
        yield _start(folder, programs, processes, nodes=nodes, npus=npus)
    finally:
        processes.stop_all()
        _wait_for_the_end(folder / "node1" / "pid")
        _remove(folder)


def clean_up() -> None:
    """Remove what runs have left whose process was killed; their processes are gone with it."""
    for folder in RUNS.glob(f"{PREFIX}*"):
        owner = folder / "owner"
        if not (owner.exists() and Path(f"/proc/{owner.read_text()}").exists()):
            _remove(folder)


def _wait_for_the_end(first: Path) -> None:
    """The process namespace ends with its first process, but not at once; until then its cgroups are in use."""
    deadline = time.monotonic() + 10
    while first.exists() and Path(f"/proc/{first.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _remove(folder: Path) -> None:
    _remove_cgroups(f"{folder.name}-")
    shutil.rmtree(folder, ignore_errors=True)


def _remove_cgroups(prefix: str) -> None:
    for path in Path("/sys/fs/cgroup").glob(f"*/{prefix}*"):
        for below in sorted(path.rglob("*/"), reverse=True):
            with suppress(OSError):
                below.rmdir()
        with suppress(OSError):
            path.rmdir()


def _start(folder: Path, programs: Path, processes: Processes, *, nodes: int, npus: int) -> Cluster:
    pki = folder / "pki"
    ca = _certificates(pki)
    made = tuple(Node(number, folder) for number in range(1, nodes + 1))
    first = _first_namespaces(made[0], processes)
    made[0].enter(first)
    (made[0].folder / "pid").write_text(str(first.pid))
    _start_control_plane(folder, programs, processes, first)
    port = free_port()
    relay = [sys.executable, str(Path(__file__).with_name("relay.py")), str(port), first.network, str(API_PORT)]
    processes.start("relay", relay)
    kubeconfig = ca.kubeconfig(folder / "kubeconfig", f"https://127.0.0.1:{port}", "admin", group="system:masters")
    cluster = Cluster(folder, kubeconfig, programs, made)
    processes.until("apiserver", _answers(lambda: cluster.kubectl("get", "--raw", "/readyz")))
    _start_controllers(pki, programs, processes, first)
    for node in made[1:]:
        node.join(first, made[0], processes)
    pause = images.pause(folder)
    for node in made:
        node.start(ca, pki, programs, processes, pause, npus=npus)
    wanted = {node.name for node in made}
    processes.until(made[-1].process("kubelet"), lambda: _ready_nodes(cluster, npus=npus) == wanted)
    processes.until("controller-manager", _answers(lambda: cluster.kubectl("get", "serviceaccount", "default")))
    return cluster


def _certificates(pki: Path) -> Authority:
    ca = Authority(pki, "ca")
    here = ("127.0.0.1", API_ADDRESS, "10.96.0.1", "localhost", "kubernetes.default.svc", "kubernetes")
    ca.files("apiserver", "kube-apiserver", addresses=here)
    ca.files("apiserver-kubelet", "apiserver-kubelet-client", group="system:masters")
    server = f"https://127.0.0.1:{API_PORT}"
    for label in ("controller-manager", "scheduler"):
        ca.kubeconfig(pki / f"{label}.kubeconfig", server, f"system:kube-{label}")
    Authority(pki, "front-proxy")
    service_account_keys(pki)
    return ca


def _first_namespaces(node: Node, processes: Processes) -> Namespaces:
    """The first node's, and the process namespace of the whole cluster."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", *node.holder()]
    parent = processes.start("node1-holder", command)
    processes.until("node1-holder", (node.folder / "ready").exists)
    return Namespaces(only_child(parent))


def _start_control_plane(folder: Path, programs: Path, processes: Processes, first: Namespaces) -> None:
    pki = folder / "pki"
    etcd = ["etcd", f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"]
    etcd += ["--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"]
    processes.start("etcd", first.inside(etcd))
    policy = folder / "audit-policy.yaml"
    policy.write_text(yaml.safe_dump(AUDIT_POLICY))
    flags = {
        "etcd-servers": ETCD,
        "secure-port": API_PORT,
        "advertise-address": API_ADDRESS,
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "requestheader-client-ca-file": pki / "front-proxy.crt",
        "requestheader-allowed-names": "front-proxy",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-cluster-ip-range": SERVICES,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "kubelet-client-certificate": pki / "apiserver-kubelet.crt",
        "kubelet-client-key": pki / "apiserver-kubelet.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-preferred-address-types": "InternalIP",
        "audit-policy-file": policy,
        "audit-log-path": folder / "audit.log",
        "allow-privileged": "true",
    }
    processes.start("apiserver", first.inside([str(programs / "kube-apiserver"), *_flags(flags)]))


def _start_controllers(pki: Path, programs: Path, processes: Processes, first: Namespaces) -> None:
    for label in ("controller-manager", "scheduler"):
        config = pki / f"{label}.kubeconfig"
        flags: dict[str, object] = {
            "bind-address": "127.0.0.1",
            "kubeconfig": config,
            "authentication-kubeconfig": config,
            "authorization-kubeconfig": config,
            "leader-elect": "false",
        }
        if label == "controller-manager":
            flags |= {
                "use-service-account-credentials": "true",
                "service-account-private-key-file": pki / "sa.key",
                "root-ca-file": pki / "ca.crt",
                "cluster-signing-cert-file": pki / "ca.crt",
                "cluster-signing-key-file": pki / "ca.key",
            }
        processes.start(label, first.inside([str(programs / f"kube-{label}"), *_flags(flags)]))


def _flags(values: dict[str, Any]) -> Sequence[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _answers(ask: Callable[[], object]) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            ask()
        except StartError:
            return False
        return True

    return answers


def _ready_nodes(cluster: Cluster, *, npus: int) -> set[str]:
    found = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    ready = {"type": "Ready", "status": "True"}
    return {
        node["metadata"]["name"]
        for node in found
        if any(ready.items() <= condition.items() for condition in node["status"].get("conditions", ()))
        and node["status"]["allocatable"].get(RESOURCE, "0") == str(npus)
    }
