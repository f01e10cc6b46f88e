"""The control plane's processes and certificates: etcd, API server, controller manager, scheduler; next to one node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.nodes.certificates import Authority, service_account_keys
from tests.cluster.testbed.nodes.processes import Namespaces, Processes
from tests.cluster.testbed.npus import pod_annotations

API_ADDRESS = "10.123.0.1"
API_PORT = 6443
ETCD = "http://127.0.0.1:2379"
SERVICES = "10.96.0.0/16"
# All requests from outside the cluster's own parts, without bodies: they show which rights the launcher really uses.
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]},
        {"level": "None", "users": [pod_annotations.USER, "testbed:dns"]},
        {"level": "Metadata"},
    ],
}


DOMAIN = "cluster.local"
COREFILE = """\
.:53 {{
  bind {address}
  errors
  kubernetes {domain} {{
    kubeconfig {kubeconfig}
  }}
}}
"""


def certificates(pki: Path) -> Authority:
    """Make all certificates of the control plane in `pki`; the authority signs the nodes' certificates later."""
    ca = Authority(pki, "ca")
    addresses = ("127.0.0.1", API_ADDRESS, "10.96.0.1", "localhost", "kubernetes.default.svc", "kubernetes")
    ca.files("apiserver", "kube-apiserver", addresses=addresses)
    ca.files("apiserver-kubelet", "apiserver-kubelet-client", group="system:masters")
    server = f"https://127.0.0.1:{API_PORT}"
    for label in ("controller-manager", "scheduler"):
        ca.kubeconfig(pki / f"{label}.kubeconfig", server, f"system:kube-{label}")
    ca.kubeconfig(pki / "dns.kubeconfig", server, "testbed:dns", group="system:masters")
    Authority(pki, "front-proxy")
    service_account_keys(pki)
    return ca


def start_api_server(folder: Path, programs: Path, processes: Processes, first: Namespaces) -> None:
    """Start the API server and its etcd, in the first node's namespaces."""
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


def start_controllers(
    pki: Path, programs: Path, processes: Processes, first: Namespaces, *, silent_after_s: int | None
) -> None:
    """Start the controller manager and the scheduler.

    Args:
        silent_after_s: seconds without an answer after which a node is unreachable; the program's own if None.
    """
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
            if silent_after_s is not None:
                flags |= {"node-monitor-grace-period": f"{silent_after_s}s", "node-monitor-period": "1s"}
        processes.start(label, first.inside([str(programs / f"kube-{label}"), *_flags(flags)]))


def start_dns(folder: Path, processes: Processes, first: Namespaces) -> None:
    """Start the DNS server, which gives pods the addresses of services and of the pods behind them."""
    config = folder / "Corefile"
    config.write_text(COREFILE.format(address=API_ADDRESS, domain=DOMAIN, kubeconfig=folder / "pki" / "dns.kubeconfig"))
    processes.start("dns", first.inside([str(binaries.coredns() / "coredns"), "-conf", str(config)]))


def _flags(values: dict[str, Any]) -> Sequence[str]:
    return [f"--{name}={value}" for name, value in values.items()]
