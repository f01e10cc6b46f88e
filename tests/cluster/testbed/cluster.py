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
"""Names a kubeconfig of a cluster that the tests are to use in place of the bed."""


class NotABedError(Exception):
    """A test wants the inside of a cluster that is not the test bed; the message is one line and says which part."""


@dataclass(frozen=True)
class Bed:
    """What of a cluster only this package can give.

    Attributes:
        folder: everything of it: logs, certificates, the nodes' disks.
        programs: where Kubernetes' are.
    """

    folder: Path
    programs: Path
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Cluster:
    """One that runs: the test bed, or somebody's.

    Attributes:
        kubeconfig: of its administrator.
        program: kubectl.
        bed: None of a cluster that is somebody's.
    """

    kubeconfig: Path
    program: Path
    bed: Bed | None

    @property
    def folder(self) -> Path:
        """The bed's."""
        return self.inside("its folder of logs and certificates").folder

    @property
    def programs(self) -> Path:
        """The bed's."""
        return self.inside("Kubernetes' own programs").programs

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The bed's."""
        return self.inside("the inside of its nodes").nodes

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints.

        Raises:
            StartError: it failed.
        """
        return output_of(self.command(*arguments))

    def command(self, *arguments: str) -> list[str]:
        """The command line of kubectl; what it caches of the bed goes with the bed."""
        cache = [] if self.bed is None else [f"--cache-dir={self.bed.folder / 'kubectl'}"]
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *cache, *arguments]

    def get(self, *words: str) -> Any:
        """An object, or a List of them, by the words of `kubectl get`.

        Raises:
            StartError: it failed.
        """
        return json.loads(self.kubectl("get", *words, "--output=json"))

    def create(self, *objects: Mapping[str, Any]) -> None:
        """Create them in this order, each in its own namespace.

        Raises:
            StartError: one is refused.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"apiVersion": "v1", "kind": "List", "items": objects}, file)
            file.flush()
            self.kubectl("create", "--filename", file.name)

    def load(self, archive: Path) -> None:
        """Give every node an image.

        Raises:
            NotABedError: the nodes are somebody's.
        """
        for node in self.nodes:
            node.load(archive)

    @property
    def config(self) -> Any:
        """The kubeconfig, with its certificates in it.

        Raises:
            StartError: it cannot be read.
        """
        return json.loads(self.kubectl("config", "view", "--raw", "--output=json"))

    def inside(self, part: str) -> Bed:
        """The bed, for the sake of this part.

        Raises:
            NotABedError: the cluster is somebody's.
        """
        if self.bed is None:
            raise NotABedError(f"{self.kubeconfig} is not the test bed, and this needs {part}: unset {KUBECONFIG}")
        return self.bed


def namespace(cluster: Cluster, name: str, *, labels: Mapping[str, str] | None = None) -> None:
    """Create one, and come back when pods can be made in it.

    Raises:
        StartError: it is there, or its service account does not come.
    """
    metadata = {"name": name, "labels": dict(labels or {})}
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    # Pods are refused before the one, and wait for their volumes before the other. Of two, kubectl 1.36.3 waits for the
    # first alone, and fails if the second is not there then.
    for waited in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
        cluster.kubectl("wait", "--for=create", waited, "--namespace", name, "--timeout=300s")


def named(kubeconfig: Path) -> Cluster:
    """Somebody's cluster; kubectl is theirs, or else the bed's.

    Raises:
        BuildError: there is no kubectl, and it cannot be built.
    """
    found = shutil.which("kubectl")
    return Cluster(kubeconfig, Path(found) if found else binaries.kubernetes() / "kubectl", bed=None)


@contextmanager
def running(
    *,
    nodes: int = 2,
    npus: int = 8,
    node_labels: Mapping[str, str] = ASCEND_910_LABELS,
    container_log_max_size: str | None = None,
    container_log_max_files: int = 5,
) -> Iterator[Cluster]:
    """A cluster, for as long as the context lasts; it ends with this process whatever happens to it.

    Args:
        nodes: how many; each is as `NodeOptions` says.

    Raises:
        StartError: it cannot be started.
        BuildError: its programs cannot be built.
    """
    options = NodeOptions(npus, node_labels, container_log_max_size, container_log_max_files)
    programs = binaries.kubernetes()
    binaries.coredns()
    RUNS.mkdir(parents=True, exist_ok=True)
    clean_up()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=RUNS))
    processes = Processes(folder / "logs")
    try:
        (folder / "owner").write_text(str(os.getpid()))
        yield _start(folder, programs, processes, options, nodes=nodes)
    finally:
        processes.stop_all()
        _wait_for_the_end(folder / "node1" / "pid")
        _remove(folder)


def clean_up() -> None:
    """Remove what runs have left whose process was killed; their processes are gone with it."""
    for folder in RUNS.glob(f"{PREFIX}*"):
        if not _is_owned(folder):
            _remove(folder)
    # Those that were still in use when the rest was removed.
    for group in CGROUPS.glob(f"*/{PREFIX}*"):
        run, _node = group.name.rsplit("-", 1)
        if not (RUNS / run).exists():
            _remove_cgroups(group.name)


def _is_owned(folder: Path) -> bool:
    """Whether the process that made it lives; one that has just made it may not have said so yet."""
    try:
        return Path(f"/proc/{(folder / 'owner').read_text()}").exists()
    except FileNotFoundError:
        return folder.exists() and time.time() - folder.stat().st_mtime < CLAIMED_WITHIN_S


def _wait_for_the_end(first: Path) -> None:
    """The process namespace ends with its first process, but not at once; until then its cgroups are in use."""
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


def _start(folder: Path, programs: Path, processes: Processes, options: NodeOptions, *, nodes: int) -> Cluster:
    pki = folder / "pki"
    ca = control_plane.certificates(pki)
    made = tuple(Node(number, folder) for number in range(1, nodes + 1))
    first = _first_namespaces(made[0], processes)
    made[0].enter(first)
    (made[0].folder / "pid").write_text(str(first.pid))
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
    cluster = Cluster(kubeconfig, programs / "kubectl", Bed(folder, programs, made))
    # Looking often by a kubectl would take from what starts most of a processor.
    with closing(Api(kubeconfig)) as api:
        processes.until("apiserver", lambda: api.answers("/readyz"))
        control_plane.start_controllers(pki, programs, processes, first)
        control_plane.start_dns(folder, processes, first)
        for node in made[1:]:
            node.join(first, made[0], processes)
        cluster.create(*pod_annotations.RIGHTS)
        archives = (images.pause(folder), images.trainer(folder))
        for node in made:
            node.start(ca, programs, processes, archives, options)
        wanted = {node.name for node in made}
        processes.until(made[-1].process("kubelet"), lambda: _ready_nodes(api, npus=options.npus) == wanted)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        processes.until("controller-manager", lambda: api.answers(account))
    return cluster


def _first_namespaces(node: Node, processes: Processes) -> Namespaces:
    """The first node's, and the process namespace of the whole cluster."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", *node.holder()]
    parent = processes.start("node1-holder", command)
    processes.until("node1-holder", (node.folder / "ready").exists)
    return Namespaces(only_child(parent))


def _ready_nodes(api: Api, *, npus: int) -> set[str]:
    found = api.get("/api/v1/nodes")["items"]
    ready = {"type": "Ready", "status": "True"}
    return {
        node["metadata"]["name"]
        for node in found
        if any(ready.items() <= condition.items() for condition in node["status"].get("conditions", ()))
        and node["status"]["allocatable"].get(RESOURCE, "0") == str(npus)
    }
