"""Start and stop a whole Kubernetes: control plane and nodes, in the order in which they need each other."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.testbed.api import Api
from tests.cluster.testbed.artifacts import binaries, images
from tests.cluster.testbed.nodes import control_plane
from tests.cluster.testbed.nodes.node import ASCEND_910_LABELS, CGROUPS, Node, NodeOptions
from tests.cluster.testbed.nodes.processes import Namespaces, Processes, only_child, output_of
from tests.cluster.testbed.npus import pod_annotations
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from trainer.topology.ports import free_port

RUNS = Path("/var/tmp/pnas-testbed")
PREFIX = "pnas-testbed-"
CLAIMED_WITHIN_S = 10
KUBECONFIG = "PNAS_TEST_KUBECONFIG"
"""Names a kubeconfig of a cluster that the tests use in place of the test bed."""


class NotABedError(Exception):
    """A test needs the inside of a cluster that is not the test bed; the message is one line and names the part."""


@dataclass(frozen=True)
class Bed:
    """The parts of a cluster that only the test bed has.

    Attributes:
        folder: all its files: logs, certificates, the nodes' disks.
        programs: the folder of Kubernetes' programs.
    """

    folder: Path
    programs: Path
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the test bed, or another one.

    Attributes:
        kubeconfig: the administrator's kubeconfig.
        program: kubectl.
        bed: None if the cluster is not the test bed.
    """

    kubeconfig: Path
    program: Path
    bed: Bed | None

    @property
    def folder(self) -> Path:
        """Return the test bed's folder."""
        return self.inside("its folder of logs and certificates").folder

    @property
    def programs(self) -> Path:
        """Return the folder of the test bed's programs."""
        return self.inside("Kubernetes' own programs").programs

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Return the test bed's nodes."""
        return self.inside("the inside of its nodes").nodes

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl and return its output.

        Raises:
            StartError: kubectl failed.
        """
        return output_of(self.command(*arguments))

    def command(self, *arguments: str) -> list[str]:
        """Return kubectl's command line; for the test bed, its cache is in the test bed's folder."""
        cache = [] if self.bed is None else [f"--cache-dir={self.bed.folder / 'kubectl'}"]
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *cache, *arguments]

    def get(self, *words: str) -> Any:
        """Return an object, or a List of objects, by the words of `kubectl get`.

        Raises:
            StartError: kubectl failed.
        """
        return json.loads(self.kubectl("get", *words, "--output=json"))

    def create(self, *objects: Mapping[str, Any]) -> None:
        """Create objects in this order, each in its own namespace.

        Raises:
            StartError: an object is refused.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"apiVersion": "v1", "kind": "List", "items": objects}, file)
            file.flush()
            self.kubectl("create", "--filename", file.name)

    def load(self, archive: Path) -> None:
        """Load an image on every node.

        Raises:
            NotABedError: the cluster is not the test bed.
        """
        for node in self.nodes:
            node.load(archive)

    @property
    def config(self) -> Any:
        """Return the kubeconfig, with its certificates.

        Raises:
            StartError: it cannot be read.
        """
        return json.loads(self.kubectl("config", "view", "--raw", "--output=json"))

    def inside(self, part: str) -> Bed:
        """Return the test bed; `part` names the part that the caller needs.

        Raises:
            NotABedError: the cluster is not the test bed.
        """
        if self.bed is None:
            raise NotABedError(f"{self.kubeconfig} is not the test bed, and this needs {part}: unset {KUBECONFIG}")
        return self.bed


def create_namespace(cluster: Cluster, name: str, *, labels: Mapping[str, str] | None = None) -> None:
    """Create a namespace, and return when pods can be created in it.

    Raises:
        StartError: the namespace exists, or its service account does not appear.
    """
    metadata = {"name": name, "labels": dict(labels or {})}
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    # Without the service account, pods are refused. Without the ConfigMap, they wait for their volumes. Each has its
    # own command: given two objects, kubectl 1.36.3 waits only for the first, and fails if the second does not exist
    # then.
    for name_of_object in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
        cluster.kubectl("wait", "--for=create", name_of_object, "--namespace", name, "--timeout=300s")


def existing(kubeconfig: Path) -> Cluster:
    """Return an existing cluster; use its administrator's kubectl if there is one, otherwise the test bed's.

    Raises:
        BuildError: there is no kubectl, and it cannot be built.
    """
    kubectl = shutil.which("kubectl")
    return Cluster(kubeconfig, Path(kubectl) if kubectl else binaries.kubernetes() / "kubectl", bed=None)


@contextmanager
def running(
    *,
    nodes: int = 2,
    npus: int = 8,
    node_labels: Mapping[str, str] = ASCEND_910_LABELS,
    container_log_max_size: str | None = None,
    container_log_max_files: int = 5,
    silent_after_s: int | None = None,
    api_server_only: bool = False,
) -> Iterator[Cluster]:
    """Run a cluster while the context lasts; it ends with this process in any case.

    Args:
        nodes: the number of nodes; `NodeOptions` describes each.
        api_server_only: start no controllers and no kubelets, so that nothing changes the objects.

    Raises:
        StartError: the cluster cannot be started.
        BuildError: its programs cannot be built.
    """
    options = NodeOptions(npus, node_labels, container_log_max_size, container_log_max_files, silent_after_s)
    programs = binaries.kubernetes()
    binaries.coredns()
    RUNS.mkdir(parents=True, exist_ok=True)
    clean_up()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=RUNS))
    processes = Processes(folder / "logs")
    try:
        (folder / "owner").write_text(str(os.getpid()))
        yield _start(folder, programs, processes, options, nodes=nodes, api_server_only=api_server_only)
    finally:
        processes.stop_all()
        _wait_for_the_end(folder / "node1" / "pid")
        _remove(folder)


def clean_up() -> None:
    """Remove the files of runs whose process was killed; their other processes ended with it."""
    for folder in RUNS.glob(f"{PREFIX}*"):
        if not _is_owned(folder):
            _remove(folder)
    # These groups were still in use when the rest was removed.
    for group in CGROUPS.glob(f"*/{PREFIX}*"):
        run, _node = group.name.rsplit("-", 1)
        if not (RUNS / run).exists():
            _remove_cgroups(group.name)


def _is_owned(folder: Path) -> bool:
    """Return whether the run's process lives; a new run possibly has not written its process id yet."""
    try:
        return Path(f"/proc/{(folder / 'owner').read_text()}").exists()
    except FileNotFoundError:
        return folder.exists() and time.time() - folder.stat().st_mtime < CLAIMED_WITHIN_S


def _wait_for_the_end(first: Path) -> None:
    """Wait for the end of the process namespace, shortly after its first process's; until then it uses its cgroups."""
    deadline = time.monotonic() + 10
    while first.exists() and Path(f"/proc/{first.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _remove(folder: Path) -> None:
    _remove_cgroups(f"{folder.name}-")
    shutil.rmtree(folder, ignore_errors=True)


def _remove_cgroups(prefix: str) -> None:
    for path in CGROUPS.glob(f"*/{prefix}*"):
        for below in sorted(path.rglob("*/"), reverse=True):
            with suppress(OSError):
                below.rmdir()
        with suppress(OSError):
            path.rmdir()


def _start(
    folder: Path, programs: Path, processes: Processes, options: NodeOptions, *, nodes: int, api_server_only: bool
) -> Cluster:
    pki = folder / "pki"
    ca = control_plane.certificates(pki)
    cluster_nodes = tuple(Node(number, folder) for number in range(1, nodes + 1))
    first = _first_namespaces(cluster_nodes[0], processes)
    cluster_nodes[0].enter(first)
    (cluster_nodes[0].folder / "pid").write_text(str(first.pid))
    control_plane.start_api_server(folder, programs, processes, first)
    port = free_port()
    relay = [
        sys.executable,
        str(Path(__file__).parent / "nodes" / "relay.py"),
        str(port),
        first.network,
        str(control_plane.API_PORT),
    ]
    processes.start("relay", relay)
    kubeconfig = ca.kubeconfig(folder / "kubeconfig", f"https://127.0.0.1:{port}", "admin", group="system:masters")
    cluster = Cluster(kubeconfig, programs / "kubectl", Bed(folder, programs, cluster_nodes))
    # kubectl would take most of a processor from the starting programs, because of the frequent checks.
    with closing(Api(kubeconfig)) as api:
        processes.until("apiserver", lambda: api.answers("/readyz"))
        if api_server_only:
            return cluster
        control_plane.start_controllers(pki, programs, processes, first, silent_after_s=options.silent_after_s)
        control_plane.start_dns(folder, processes, first)
        for node in cluster_nodes[1:]:
            node.join(first, cluster_nodes[0], processes)
        cluster.create(*pod_annotations.RIGHTS)
        archives = (images.pause(folder), images.trainer(folder))
        for node in cluster_nodes:
            node.start(ca, programs, processes, archives, options)
        names = {node.name for node in cluster_nodes}
        processes.until(cluster_nodes[-1].process("kubelet"), lambda: _ready_nodes(api, npus=options.npus) == names)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        processes.until("controller-manager", lambda: api.answers(account))
    return cluster


def _first_namespaces(node: Node, processes: Processes) -> Namespaces:
    """Create the first node's namespaces, and the process namespace of the whole cluster."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", *node.init_command()]
    parent = processes.start("node1-init", command)
    processes.until("node1-init", (node.folder / "ready").exists)
    return Namespaces(only_child(parent))


def _ready_nodes(api: Api, *, npus: int) -> set[str]:
    items = api.get("/api/v1/nodes")["items"]
    ready = {"type": "Ready", "status": "True"}
    return {
        node["metadata"]["name"]
        for node in items
        if any(ready.items() <= condition.items() for condition in node["status"].get("conditions", ()))
        and node["status"]["allocatable"].get(RESOURCE, "0") == str(npus)
    }
