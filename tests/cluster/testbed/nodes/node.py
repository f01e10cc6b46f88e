"""One node: its namespaces and network, its disk, and its containerd, kubelet and kube-proxy."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.nodes import container_runtime
from tests.cluster.testbed.nodes.certificates import Authority
from tests.cluster.testbed.nodes.control_plane import API_ADDRESS, DOMAIN
from tests.cluster.testbed.nodes.processes import Namespaces, Processes, StartError, only_child, output_of
from tests.cluster.testbed.npus import pod_annotations

BRIDGE = "node0"
PODS = "10.244.0.0/16"
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
CGROUPS = Path("/sys/fs/cgroup")
PODS_SHARES = 10 * 1024
"""The CPU shares of all pods of a node together; a process outside any group has 1,024."""


ASCEND_910_LABELS: Mapping[str, str] = {
    "accelerator": "huawei-Ascend910",
    "accelerator-type": "module",
    "host-arch": "huawei-x86",
    "workerselector": "dls-worker-node",
}
"""The labels of an Atlas 800 (9010) node in MindCluster's installation guide."""


@dataclass(frozen=True)
class NodeOptions:
    """Options of every node.

    Attributes:
        npus: the number of simulated NPUs.
        labels: the node's own labels.
        container_log_max_size: the size (a quantity) above which a container's log is rotated; the kubelet's 10Mi if
            None.
        container_log_max_files: the number of log files per container, the current one included; at least 2.
        silent_after_s: seconds without an answer after which the cluster takes the node for unreachable; Kubernetes' 50
            if None.
    """

    npus: int = 8
    labels: Mapping[str, str] = field(default_factory=lambda: ASCEND_910_LABELS)
    container_log_max_size: str | None = None
    container_log_max_files: int = 5
    silent_after_s: int | None = None


class Node:
    """A node. Number 1 runs the control plane, too; the others are joined to its bridge, and can fail."""

    def __init__(self, number: int, run: Path) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = f"10.123.0.{number}"
        self.pods = f"10.244.{number - 1}.0/24"
        self.folder = run / self.name
        self.folder.mkdir()
        self.socket = self.folder / "containerd.sock"
        self._cgroup = f"{run.name}-{self.name}"
        self._namespaces: Namespaces | None = None
        self._bridge = ""
        self._started: list[Callable[[], object]] = []
        self._health = self.folder / "unhealthy"

    @property
    def namespaces(self) -> Namespaces:
        """Return the node's namespaces, after `enter`."""
        assert self._namespaces is not None
        return self._namespaces

    def enter(self, namespaces: Namespaces) -> None:
        """Set the namespaces in which the node's first process runs."""
        self._namespaces = namespaces

    def process(self, kind: str) -> str:
        """Return the name of one of the node's processes."""
        return f"{self.name}-{kind}"

    def init_command(self) -> list[str]:
        """Return the command line of the node's first process."""
        commands: list[list[str]] = []
        if self.number == 1:
            commands = [
                ["ip", "link", "add", BRIDGE, "type", "bridge"],
                ["ip", "addr", "add", f"{self.address}/24", "dev", BRIDGE],
                ["ip", "link", "set", BRIDGE, "up"],
                # Programs need a default route. It leads nowhere, because the bridge has no uplink.
                ["ip", "route", "add", "default", "dev", BRIDGE],
            ]
        spec = {"folder": str(self.folder), "commands": commands}
        return [sys.executable, str(Path(__file__).with_name("node_init.py")), json.dumps(spec)]

    def join(self, first: Namespaces, other: "Node", processes: Processes) -> None:
        """Create the node's namespaces within the first node's process namespace, and connect the two nodes."""
        name = self.process("init")
        # Start from the machine's mounts, not the first node's. An overlay on its overlay would show the sockets of the
        # first kubelet and its device plugin, and programs would try to connect to them.
        command = ["nsenter", "--target", str(first.pid), "--pid", "--", "unshare", "--mount", "--mount-proc", "--net"]
        parent = processes.start(name, [*command, *self.init_command()])
        processes.until(name, (self.folder / "ready").exists)
        self._namespaces = Namespaces(only_child(parent))
        pid, link, self._bridge = str(self.namespaces.pid), "up0", first.network
        outside = ["nsenter", f"--net={first.network}", "--"]
        output_of([*outside, "ip", "link", "add", self.name, "type", "veth", "peer", "name", link, "netns", pid])
        output_of([*outside, "ip", "link", "set", self.name, "master", BRIDGE, "up"])
        output_of([*outside, "ip", "route", "add", self.pods, "via", self.address])
        inside = ["nsenter", f"--net={self.namespaces.network}", "--"]
        output_of([*inside, "ip", "addr", "add", f"{self.address}/24", "dev", link])
        output_of([*inside, "ip", "link", "set", link, "up"])
        output_of([*inside, "ip", "route", "add", "default", "via", other.address])
        output_of([*inside, "ip", "route", "add", other.pods, "via", other.address])

    def start(
        self,
        ca: Authority,
        programs: Path,
        processes: Processes,
        archives: Sequence[Path],
        options: NodeOptions,
    ) -> None:
        """Start the processes of the node.

        Args:
            archives: the images to load, including the sandbox image.
        """
        server = "https://127.0.0.1:6443" if self.number == 1 else "https://10.123.0.1:6443"
        ca.files(self.name, self.name, addresses=(self.address, self.name))
        identity = ca.kubeconfig(
            self.folder / "kubelet.kubeconfig", server, f"system:node:{self.name}", group="system:nodes"
        )
        proxy = ca.kubeconfig(self.folder / "proxy.kubeconfig", server, "system:kube-proxy")
        self._make_cgroups()
        self._start_containerd(processes, archives)
        kubelet = self._write("kubelet.yaml", self._kubelet(ca.certificate.parent, options))
        labels = ",".join(f"{name}={value}" for name, value in options.labels.items())
        command = [str(programs / "kubelet"), f"--config={kubelet}", f"--kubeconfig={identity}"]
        command += [f"--hostname-override={self.name}", f"--node-ip={self.address}", f"--cert-dir={self.folder}"]
        command += [f"--node-labels={labels}"]
        self._start(processes, "kubelet", command)
        config = self._write("proxy.yaml", self._proxy(proxy))
        self._start(processes, "proxy", [str(programs / "kube-proxy"), f"--config={config}"])
        if options.npus:
            self._health.touch()
            plugin = ca.kubeconfig(self.folder / "npu.kubeconfig", server, pod_annotations.USER)
            spec = {
                "count": options.npus,
                "protocol_folder": str(programs),
                "health": str(self._health),
                "kubeconfig": str(plugin),
                "node": self.name,
                "address": self.address,
            }
            command = [sys.executable, "-m", "tests.cluster.testbed.npus.device_plugin", json.dumps(spec)]
            self._start(processes, "npu", command, environ={"PYTHONPATH": str(container_runtime.CHECKOUT)})

    def kill(self) -> None:
        """Kill the kubelet, containerd and all containers, as a power failure does; the node stays silent."""
        while pids := self._pids():
            _signal(pids, signal.SIGKILL)
            time.sleep(0.02)

    def revive(self) -> None:
        """Start a killed node again."""
        for start in self._started:
            start()

    def pause(self) -> None:
        """Stop all processes of the node, as a paused virtual machine does."""
        _signal(self._pids(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused node go on."""
        _signal(self._pids(), signal.SIGCONT)

    def cut_off(self) -> None:
        """Take the node's network away; its containers run on, and reach their volumes."""
        self._set_link("down")

    def reconnect(self) -> None:
        """Give a node its network back."""
        self._set_link("up")

    def _set_link(self, state: str) -> None:
        # The bridge's side of the cable: the node keeps its addresses and routes.
        output_of(["nsenter", f"--net={self._bridge}", "--", "ip", "link", "set", self.name, state])

    def _pids(self) -> list[int]:
        """Return this machine's process ids of the node's programs and containers; its namespaces stay."""
        programs = (path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if self._is_program(path))
        return [*self.container_pids(), *(int(path.name) for path in programs)]

    def container_pids(self) -> list[int]:
        """Return this machine's process ids of the processes in containers."""
        groups = (CGROUPS / "pids" / self._cgroup).rglob("cgroup.procs")
        return sorted({int(pid) for group in groups for pid in group.read_text().split()})

    def _is_program(self, command_line: Path) -> bool:
        with suppress(OSError):
            return f"{self.folder}/".encode() in command_line.read_bytes()
        return False

    def _start(
        self, processes: Processes, kind: str, command: Sequence[str], *, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start a program of the node, and remember how."""

        def start() -> None:
            processes.start(self.process(kind), self.namespaces.inside(command), environ=environ)

        start()
        self._started.append(start)

    def make_unhealthy(self, chips: set[int]) -> None:
        """Make these NPUs unhealthy, and all others healthy."""
        self._health.write_text(",".join(map(str, sorted(chips))))

    def _start_containerd(self, processes: Processes, archives: Sequence[Path]) -> None:
        network = self.folder / "cni"
        network.mkdir()
        (network / "10-bridge.conflist").write_text(json.dumps(self._network()))
        config = self.folder / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(
                folder=self.folder, socket=self.socket, pause=images.PAUSE, runc=container_runtime.runc(self.folder)
            )
        )
        self._start(processes, "containerd", ["containerd", f"--config={config}"])
        # The kubelet ends at once if containerd does not serve yet.
        self._started.append(lambda: processes.until(self.process("containerd"), self._serves))
        self._started[-1]()
        for archive in archives:
            self.load(archive)

    def _serves(self) -> bool:
        """Return whether containerd's CRI plugin is ready, which becomes ready after the server."""
        try:
            plugins = self.namespaces.run(*self._ctr("plugins", "list"))
        except StartError:
            return False
        cri = [line.split() for line in plugins.splitlines() if line.split()[:2] == ["io.containerd.grpc.v1", "cri"]]
        return bool(cri) and cri[0][-1] == "ok"

    def load(self, archive: Path) -> None:
        """Load an image."""
        self.namespaces.run(*self._ctr("images", "import", "--no-unpack", str(archive)))

    def tag(self, image: str, name: str) -> None:
        """Give an image of the node another name, too."""
        self.namespaces.run(*self._ctr("images", "tag", "--force", image, name))

    def _ctr(self, *words: str) -> list[str]:
        return ["ctr", f"--address={self.socket}", "--namespace=k8s.io", *words]

    def _make_cgroups(self) -> None:
        for controller in CONTROLLERS:
            (CGROUPS / controller / self._cgroup).mkdir(exist_ok=True)
        for part in ("cpus", "mems"):
            group_file = CGROUPS / "cpuset" / self._cgroup / f"cpuset.{part}"
            group_file.write_text((CGROUPS / "cpuset" / f"cpuset.{part}").read_text())
        # Without this, all pods of a node together would have the share of one process.
        (CGROUPS / "cpu" / self._cgroup / "cpu.shares").write_text(str(PODS_SHARES))

    def _write(self, name: str, value: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(value))
        return path

    def _kubelet(self, pki: Path, options: NodeOptions) -> dict[str, Any]:
        size = options.container_log_max_size
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzBindAddress": "127.0.0.1",
            "tlsCertFile": str(pki / f"{self.name}.crt"),
            "tlsPrivateKeyFile": str(pki / f"{self.name}.key"),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": ["pods"],
            "oomScoreAdj": 0,
            "resolvConf": "",
            "clusterDNS": [API_ADDRESS],
            "clusterDomain": DOMAIN,
            "evictionHard": {"memory.available": "200Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
            "imageGCHighThresholdPercent": 99,
            "imageGCLowThresholdPercent": 98,
            "fileCheckFrequency": "5s",
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "5s",
            **({} if options.silent_after_s is None else {"nodeLeaseDurationSeconds": options.silent_after_s}),
            # Without it, the kubelet makes the machine's own folder.
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "containerLogMaxFiles": options.container_log_max_files,
            # The shortest interval that the kubelet accepts.
            "containerLogMonitorInterval": "3s",
            **({} if size is None else {"containerLogMaxSize": size}),
        }

    def _proxy(self, kubeconfig: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": self.name,
            "bindAddress": self.address,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            # Without it, kube-proxy would set the machine's own limits.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }

    def _network(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# Without CAP_SYS_RESOURCE, runc cannot lower an oom_score_adj, and no sandbox would start.
_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
oom_score = 0
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{runc}"
"""
