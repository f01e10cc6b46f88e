"""Helm 3 and Helm 4, as a test types them."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import SHORT_LIVED

HELMS: Mapping[str, Callable[[], Path]] = {"helm3": binaries.helm3, "helm4": binaries.helm4}
"""Each function builds its program on its first call."""

ALL_ON = (
    *("--set", "queue.create=true", "--set", "queue.name=chart-all-on", "--set", "defaults.image=r/pnas:1"),
    *("--set-json", 'queue.capability={"huawei.com/Ascend910": 16}', "--set", "modes.full.batch_size=24"),
    *("--set-json", 'rbac.subjects=[{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]'),
    *("--set", "claims.data.storageClass=fast", "--set-json", 'defaults.node_selector={"accelerator": "910"}'),
    *("--set", "rbac.cluster=true", "--set", "rbac.volcano=true", "--set", "rbac.recover=true"),
    *("--set", "rbac.fetch=true"),
    *("--set", "tensorboard.enabled=true"),
    *("--set", "job.enabled=true", "--set", "job.backend=volcano", "--set", "job.nodes=2", "--set", "job.npus=8"),
)
"""Values that switch everything on."""


@dataclass(frozen=True)
class Helm:
    """One version of Helm in one namespace, with the rights of the cluster's administrator or of a kubeconfig."""

    program: Path
    cluster: Cluster
    namespace: str
    kubeconfig: Path | None = None

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        options = (f"--kubeconfig={self.kubeconfig or self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        command = [str(self.program), *words, *options]
        return _run_program(command)

    def __call__(self, *words: str) -> str:
        """Run a command that must succeed; return its output, and below it the hooks' logs from stderr."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr


def template(program: Path, chart: Path, *words: str, release: str = "pnas") -> str:
    """Return a chart's manifests, without a cluster."""
    result = run_template(program, chart, *words, release=release)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_template(program: Path, chart: Path, *words: str, release: str = "pnas") -> "subprocess.CompletedProcess[str]":
    """Render a chart without a cluster, to its success or its refusal."""
    return _run_program([str(program), "template", release, str(chart), *words])


def _run_program(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, **SHORT_LIVED}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
