"""Helm, of both versions, in somebody's namespace."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.testbed.artifacts import binaries
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import SHORT_LIVED

HELMS: Mapping[str, Callable[[], Path]] = {"helm3": binaries.helm3, "helm4": binaries.helm4}
"""Each builds its program if it is not there."""

ALL_ON = (
    *("--set", "queue.create=true", "--set", "queue.name=chart-all-on", "--set", "defaults.image=r/pnas:1"),
    *("--set-json", 'queue.capability={"huawei.com/Ascend910": 16}', "--set", "modes.full.batch_size=24"),
    *("--set-json", 'rbac.subjects=[{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]'),
    *("--set", "claims.data.storageClass=fast", "--set-json", 'defaults.node_selector={"accelerator": "910"}'),
    *("--set", "rbac.cluster=true", "--set", "tensorboard.enabled=true"),
    *("--set", "job.enabled=true", "--set", "job.backend=volcano", "--set", "job.nodes=2", "--set", "job.npus=8"),
)
"""Values that switch everything on."""


@dataclass(frozen=True)
class Helm:
    """One version of it, as the cluster's administrator."""

    program: Path
    cluster: Cluster
    namespace: str

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
        where = (f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        command = [str(self.program), *words, *where]
        return _done(command)

    def __call__(self, *words: str) -> str:
        """What it prints; it succeeds."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def template(program: Path, chart: Path, *words: str, release: str = "pnas") -> str:
    """What a chart gives, without a cluster."""
    command = [str(program), "template", release, str(chart), *words]
    done = _done(command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _done(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, **SHORT_LIVED}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
