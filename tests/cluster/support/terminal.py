"""`python -m launcher` as a user types it, against the test bed, for jobs of the trainer at a scale for tests."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster, create_namespace
from tests.cluster.testbed.nodes import container_runtime
from tests.cluster.testbed.storage import claims

REPOSITORY = Path(__file__).parents[3]
IMAGE = (
    *("--image", images.TRAINER, "--image-pull-policy", "Never", "--shm", "128Mi", "--scratch", "128Mi"),
    *("--env", "OMP_NUM_THREADS=1"),
)
# The trainer computes on the CPU of its pods, but the pods ask for simulated NPUs.
POD = (*IMAGE, "--env", "PNAS_DEVICE=cpu")
# The trainer computes on the emulated NPUs that its pods get.
NPU_POD = (*IMAGE, "--env", container_runtime.ASKS_FOR_NPUS, "--device", "npu")
SMALL = (
    *("--model", "pnasnet5tiny", "--image-size", "32", "--batch-size", "8", "--workers", "0", "--aux", "none"),
    *("--steps", "4", "--warmup-steps", "1", "--log-interval", "1", "--grace-s", "10"),
)


@dataclass(frozen=True)
class Terminal:
    """A user's shell: a kubeconfig, a namespace, and a separate home."""

    cluster: Cluster
    namespace: str
    home: Path
    kubeconfig: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """Return the shell's environment, without the settings of this machine."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
        shell = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state"), "COLUMNS": "200"}
        return {
            **inherited,
            **shell,
            "KUBECONFIG": str(self.kubeconfig),
            "PNAS_NAMESPACE": self.namespace,
            **self.variables,
        }

    def run(self, *words: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            self.command(words),
            cwd=REPOSITORY,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def start(self, *words: str) -> "Iterator[subprocess.Popen[str]]":
        """Start a command and leave it running; kill it if the test fails."""
        with subprocess.Popen(
            self.command(words),
            cwd=REPOSITORY,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    @staticmethod
    def command(words: Sequence[str]) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "launcher", *words]

    def submit(self, *words: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """Submit a small job."""
        return self.run("submit", *POD, *SMALL, *words, timeout_s=timeout_s)

    def submit_diverging(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a job whose weights become useless with its first step."""
        words = ("--npus", "1", "--mode", "full", "--epochs", "9", "--lr", "1e30")
        return self.submit(*words, "--retries", "3", "--name", name)

    def pods(self, job: str) -> list[dict[str, Any]]:
        """Return the job's pods as the API server has them."""
        items: list[dict[str, Any]] = self.cluster.get(
            "pods", "--namespace", self.namespace, "--selector", f"pnas/job={job}"
        )["items"]
        return items

    def output(self, job: str) -> Path:
        """Return the job's output folder on this machine."""
        return self.cluster.folder / f"{self.namespace}-output" / job

    def kubeconfig_through(self, port: int) -> Path:
        """Write a kubeconfig that reaches the API server through a proxy on this port."""
        server = {"server": f"https://127.0.0.1:{port}"}
        return self.kubeconfig_with("through-proxy", lambda config: config["clusters"][0]["cluster"].update(server))

    def kubeconfig_with(self, name: str, change: Callable[[Any], None]) -> Path:
        """Write a copy of the kubeconfig with a change."""
        config = self.cluster.config
        change(config)
        path = self.home / name
        path.write_text(json.dumps(config))
        return path


def port_of(cluster: Cluster) -> int:
    """Return the API server's port on 127.0.0.1."""
    return int(cluster.config["clusters"][0]["cluster"]["server"].rpartition(":")[2])


@contextmanager
def own_namespace(cluster: Cluster) -> Iterator[str]:
    """Create a namespace and yield its name; Kubernetes deletes it in the background afterwards."""
    name = f"pnas-test-{uuid.uuid4().hex[:8]}"
    create_namespace(cluster, name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def restricted(
    cluster: Cluster, namespace: str, home: Path, images_folder: Path, labels: Sequence[str] = (), **variables: str
) -> Iterator[Terminal]:
    """Yield a terminal in a namespace that has both claims and takes only restricted pods."""
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, enforce, *labels)
    with job_claims(cluster, namespace, images_folder):
        yield Terminal(cluster, namespace, home, cluster.kubeconfig, variables)


@contextmanager
def job_claims(cluster: Cluster, namespace: str, images_folder: Path) -> Iterator[Path]:
    """Make both claims that the launcher looks for; yield the folder behind the output claim."""
    output = cluster.folder / f"{namespace}-output"
    claims(cluster, namespace, {"pnas-data": images_folder, "pnas-output": output})
    try:
        yield output
    finally:
        shutil.rmtree(output, ignore_errors=True)
