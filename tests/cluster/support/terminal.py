"""`python -m launcher` as a person types it, against the test bed, for jobs of the trainer at a scale for tests."""

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
from tests.cluster.testbed.cluster import Cluster, namespace
from tests.cluster.testbed.nodes import container_runtime
from tests.cluster.testbed.storage import claims

REPOSITORY = Path(__file__).parents[3]
IMAGE = (
    *("--image", images.TRAINER, "--image-pull-policy", "Never", "--shm", "128Mi", "--scratch", "128Mi"),
    *("--env", "OMP_NUM_THREADS=1"),
)
# The trainer computes on the CPU of the pods, which ask for simulated NPUs all the same.
POD = (*IMAGE, "--env", "PNAS_DEVICE=cpu")
# It computes on the NPUs that they are given, emulated.
NPU_POD = (*IMAGE, "--env", container_runtime.ASKS_FOR_NPUS, "--device", "npu")
SMALL = (
    *("--model", "pnasnet5tiny", "--image-size", "32", "--batch-size", "8", "--workers", "0", "--aux", "none"),
    *("--steps", "4", "--warmup-steps", "1", "--log-interval", "1", "--grace-s", "10"),
)


@dataclass(frozen=True)
class Terminal:
    """A person's shell: a kubeconfig, a namespace, and a home of its own."""

    cluster: Cluster
    namespace: str
    home: Path
    kubeconfig: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """Nothing of the machine's own settings gets in."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
        own = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state"), "COLUMNS": "200"}
        return {**known, **own, "KUBECONFIG": str(self.kubeconfig), "PNAS_NAMESPACE": self.namespace, **self.more}

    def run(self, *words: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
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
        """A command that goes on; a test that fails does not leave it behind."""
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
        """The command line."""
        return [sys.executable, "-m", "launcher", *words]

    def submit(self, *words: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """Submit a small job."""
        return self.run("submit", *POD, *SMALL, *words, timeout_s=timeout_s)

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The job's pods as the API server has them."""
        found: list[dict[str, Any]] = self.cluster.get(
            "pods", "--namespace", self.namespace, "--selector", f"pnas/job={job}"
        )["items"]
        return found

    def output(self, job: str) -> Path:
        """Where the job's output folder is on this machine."""
        return self.cluster.folder / f"{self.namespace}-output" / job

    def through(self, port: int) -> Path:
        """A kubeconfig that leads through a relay."""
        server = {"server": f"https://127.0.0.1:{port}"}
        return self.changed("through", lambda config: config["clusters"][0]["cluster"].update(server))

    def changed(self, name: str, change: Callable[[Any], None]) -> Path:
        """Another kubeconfig, in which something is different."""
        config = self.cluster.config
        change(config)
        path = self.home / name
        path.write_text(json.dumps(config))
        return path


def port_of(cluster: Cluster) -> int:
    """The API server's, on 127.0.0.1."""
    return int(cluster.config["clusters"][0]["cluster"]["server"].rpartition(":")[2])


@contextmanager
def own_namespace(cluster: Cluster) -> Iterator[str]:
    """The name of a new one; what is in it goes with it, in the background."""
    name = f"pnas-test-{uuid.uuid4().hex[:8]}"
    namespace(cluster, name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def restricted(
    cluster: Cluster, where: str, home: Path, images_folder: Path, labels: Sequence[str] = (), **more: str
) -> Iterator[Terminal]:
    """Somebody's terminal, where the namespace has both claims, and takes restricted pods alone."""
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", where, enforce, *labels)
    with output_of(cluster, where, images_folder):
        yield Terminal(cluster, where, home, cluster.kubeconfig, more)


@contextmanager
def output_of(cluster: Cluster, where: str, images_folder: Path) -> Iterator[Path]:
    """Make both claims that the launcher looks for; the folder behind the one for output."""
    output = cluster.folder / f"{where}-output"
    claims(cluster, where, {"pnas-data": images_folder, "pnas-output": output})
    try:
        yield output
    finally:
        shutil.rmtree(output, ignore_errors=True)
