"""`helm install pnas charts/pnas`, by Helm 3 and Helm 4, and what the launcher makes of it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from docs.chart import CHART
from launcher.rights import rules
from tests.cluster.launching import Terminal
from tests.cluster.testbed import binaries
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.volcano_install import Volcano

ALL_ON = (
    *("--set", "queue.create=true", "--set", "queue.name=chart-all-on", "--set", "defaults.image=r/pnas:1"),
    *("--set-json", 'queue.capability={"huawei.com/Ascend910": 16}', "--set", "modes.full.batch_size=24"),
    *("--set-json", 'rbac.subjects=[{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]'),
    *("--set", "claims.data.storageClass=fast", "--set-json", 'defaults.node_selector={"accelerator": "910"}'),
)


class Helm:
    """One version of it, in somebody's namespace."""

    def __init__(self, program: Path, terminal: Terminal) -> None:
        self._program = program
        self._terminal = terminal

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
        command = [str(self._program), *words, "--namespace", self._terminal.namespace]
        return subprocess.run(
            command, env=self._terminal.environ, capture_output=True, text=True, timeout=120, check=False
        )

    def __call__(self, *words: str) -> str:
        """What it prints; it succeeds."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=[binaries.helm3, binaries.helm4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, cluster: Cluster, namespace: str, tmp_path: Path) -> Helm:
    program: Callable[[], Path] = request.param
    return Helm(program(), Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"}))


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    """Somebody in the same namespace."""
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_it_is_clean_and_the_cluster_takes_all_of_it(
    helm: Helm, cluster: Cluster, volcano: Volcano, tmp_path: Path, namespace: str
) -> None:
    assert volcano.labels
    for values in ((), ALL_ON):
        assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *values)
        rendered = tmp_path / "rendered.yaml"
        rendered.write_text(helm("template", "pnas", str(CHART), *values))
        words = ("--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename", str(rendered))
        assert cluster.kubectl("create", *words).count("(server dry run)") == (7 if values else 6)


def test_a_namespace_is_ready_for_the_short_command_and_keeps_its_claims(helm: Helm, terminal: Terminal) -> None:
    said = helm("install", "pnas", str(CHART))
    assert f"python -m launcher submit --namespace {terminal.namespace} --npus 8 --mode full --image IMAGE" in said
    short = ("submit", "--npus", "8", "--mode", "full", "--dry-run", "server")
    without = terminal.run(*short)
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1), without.stderr
    assert "--image is missing" in without.stderr
    said = helm("upgrade", "pnas", str(CHART), "--reuse-values", "--set", "defaults.image=r/pnas:1")
    assert "--image" not in said
    done = terminal.run(*short)
    assert done.returncode == 0, done.stderr
    assert "the cluster accepts it" in done.stdout
    role = terminal.cluster.get("role", "pnas-launcher", "--namespace", terminal.namespace)
    assert role["rules"] == rules()
    helm("uninstall", "pnas")
    left = terminal.cluster.kubectl("get", "pvc,roles,configmaps", "-o", "name", "-n", terminal.namespace)
    assert left.split() == [
        "persistentvolumeclaim/pnas-data",
        "persistentvolumeclaim/pnas-output",
        "configmap/kube-root-ca.crt",
    ]
    helm("install", "pnas", str(CHART))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("defaults.imge=x", "'/defaults': additional properties 'imge' not allowed"),
        ("defaults.mindcluster=maybe", "'/defaults/mindcluster': value must be one of 'auto', 'on', 'off'"),
        ("claims.data.size=much", "'/claims/data/size': 'much' does not match pattern"),
        ("modes.quick.steps=1", "'/modes': additional properties 'quick' not allowed"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(helm: Helm, terminal: Terminal, value: str, said: str) -> None:
    done = helm.run("install", "pnas", str(CHART), "--set", value)
    assert done.returncode != 0
    assert said in done.stderr
    assert terminal.cluster.kubectl("get", "pvc,roles", "-o", "name", "-n", terminal.namespace) == ""
