"""A launcher that follows 100,000 lines over 200 cuts, in the background: minutes in which it computes little."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.support import fake_trainer
from tests.cluster.support.cutting_proxy import Cutter
from tests.cluster.support.terminal import REPOSITORY, Terminal, own_namespace, port_of
from tests.cluster.testbed.cluster import Cluster

LINES = 100_000
CUTS = 200


@dataclass(frozen=True)
class Cut:
    """A job's log that is followed through a relay which cuts, in the background; what is shown goes to files."""

    seed: int
    follower: "subprocess.Popen[bytes]"
    cutter: Cutter
    shown: Path
    said: Path


@contextmanager
def cut_following(cluster: Cluster, folder: Path) -> Iterator[Cut]:
    """Begin it, with what it needs in `folder`."""
    seed = random.SystemRandom().randrange(2**32)
    fake_trainer.load(cluster, folder)
    shown, said = folder / "shown", folder / "said"
    with (
        own_namespace(cluster) as namespace,
        Cutter(port_of(cluster), every_s=0.25, silence_s=0.5, seed=seed) as cutter,
        shown.open("wb") as stdout,
        said.open("wb") as stderr,
    ):
        fake_trainer.create(cluster, namespace, "cut", LINES, 700, 20)
        terminal = Terminal(cluster, namespace, folder, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})
        words = ("logs", "cut", "-f", "--raw", "--kubeconfig", str(terminal.through(cutter.port)))
        with subprocess.Popen(
            terminal.command(words), cwd=REPOSITORY, env=terminal.environ, stdout=stdout, stderr=stderr
        ) as follower:
            try:
                yield Cut(seed, follower, cutter, shown, said)
            finally:
                follower.kill()
