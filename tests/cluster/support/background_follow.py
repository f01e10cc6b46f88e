"""A launcher that follows 100,000 lines over 200 cuts, in the background: for minutes, and with little computation."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.support import fake_trainer
from tests.cluster.support.cutting_proxy import CuttingProxy
from tests.cluster.support.terminal import REPOSITORY, Terminal, own_namespace, port_of
from tests.cluster.testbed.cluster import Cluster

LINES = 100_000
CUTS = 200


@dataclass(frozen=True)
class BackgroundFollow:
    """A launcher that follows a job's log in the background, through a proxy that cuts; it writes to two files."""

    seed: int
    follower: "subprocess.Popen[bytes]"
    proxy: CuttingProxy
    stdout: Path
    stderr: Path


@contextmanager
def start_background_follow(cluster: Cluster, folder: Path) -> Iterator[BackgroundFollow]:
    """Start the launcher, the job and the proxy; their files are in `folder`."""
    seed = random.SystemRandom().randrange(2**32)
    fake_trainer.load_image(cluster, folder)
    stdout_path, stderr_path = folder / "stdout", folder / "stderr"
    with (
        own_namespace(cluster) as namespace,
        CuttingProxy(port_of(cluster), every_s=0.25, silence_s=0.5, seed=seed) as proxy,
        stdout_path.open("wb") as stdout,
        stderr_path.open("wb") as stderr,
    ):
        fake_trainer.start_job(cluster, namespace, "cut", LINES, 700, 20)
        terminal = Terminal(cluster, namespace, folder, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})
        arguments = ("logs", "cut", "-f", "--raw", "--kubeconfig", str(terminal.kubeconfig_through(proxy.port)))
        with subprocess.Popen(
            terminal.command(arguments), cwd=REPOSITORY, env=terminal.environ, stdout=stdout, stderr=stderr
        ) as follower:
            try:
                yield BackgroundFollow(seed, follower, proxy, stdout_path, stderr_path)
            finally:
                follower.kill()
