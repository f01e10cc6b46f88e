"""From the command to the job's first line: `launcher submit` against `kubectl apply` and then `kubectl logs -f`.

`python -m benchmarks.submit` starts the test bed (root, Go). Both ways start the same job in turns; its container
prints a line at once. `kubectl logs -f` does not wait for a container, so the script repeats it without a pause until
it finds one: that is the bar. Two `kubectl wait`s in between are faster, for a user who knows them; the benchmark
measures this way too.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims

ROUNDS, QUICK_ROUNDS = 7, 2
BAR = 1.0
NAMESPACE = "submit"
IMAGE = "localhost/python:1"
# The program `python` of the pod's command: it prints one line and waits.
PYTHON_C = r"""
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
  signal(SIGTERM, _exit);
  puts("[rank 0 cpu:0 #1] begin");
  fflush(stdout);
  pause();
  return 0;
}
"""
OPTIONS = ("--npus", "1", "--image", IMAGE, "--image-pull-policy", "Never", "--shm", "64Mi", "--scratch", "64Mi")
LAUNCHER, KUBECTL, WAITING = (
    "python -m launcher submit",
    "kubectl apply, then kubectl logs -f",
    "kubectl apply, two kubectl waits, kubectl logs -f",
)


def measure(quick: bool) -> list[Figure]:
    """Return the seconds to the first line, against both ways of kubectl."""
    peers.need_cluster()
    with tempfile.TemporaryDirectory() as folder, testbed.running(nodes=1, npus=1) as cluster:
        testbed.create_namespace(cluster, NAMESPACE)
        claims(cluster, NAMESPACE, {name: Path(folder) / name for name in ("pnas-data", "pnas-output")})
        cluster.load(images.program_image(Path(folder), IMAGE, PYTHON_C, path="usr/bin/python"))
        seconds = _measure(cluster, Path(folder), QUICK_ROUNDS if quick else ROUNDS)
    ours, kubectl, waiting = (Series(f"`{way}`", seconds[way]) for way in (LAUNCHER, KUBECTL, WAITING))
    return [
        Figure("to the first line", "s", ours, kubectl, Bar(BAR)),
        Figure("to the first line", "s", ours, waiting),
    ]


def _measure(cluster: Cluster, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds to the first line: `rounds` of each way in turns, after one that fills the page cache."""
    environ = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "PNAS_NAMESPACE": NAMESPACE,
        "PNAS_BACKEND": "batch",
    }
    launcher = [sys.executable, "-m", "launcher"]

    def by_launcher(name: str) -> float:
        return _first_line([*launcher, "submit", *OPTIONS, "--name", name], environ)

    def by_kubectl(name: str, conditions: str = "") -> float:
        manifest = folder / f"{name}.yaml"
        rendered = subprocess.run(
            [*launcher, "render", *OPTIONS, "--name", name], env=environ, check=True, capture_output=True
        )
        manifest.write_bytes(rendered.stdout)
        kubectl = f"{cluster.program} --namespace {NAMESPACE}"
        waits = (f"{kubectl} wait --for={condition} pod --selector=pnas/job={name}" for condition in conditions.split())
        script = [f"{kubectl} apply -f {manifest}", *waits, f"until {kubectl} logs -f job/{name}; do :; done"]
        return _first_line(["sh", "-c", " && ".join(script)], environ)

    def by_waiting(name: str) -> float:
        return by_kubectl(name, "create condition=Ready")

    ways: dict[str, Callable[[str], float]] = {
        LAUNCHER: by_launcher,
        KUBECTL: by_kubectl,
        WAITING: by_waiting,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for number, (way, start) in enumerate(ways.items()):
            name = f"job-{turn}-{number}"
            seconds[way].append(start(name))
            cluster.kubectl("delete", "job", name, "--namespace", NAMESPACE, "--cascade=foreground")
    return {way: times[1:] for way, times in seconds.items()}


def _first_line(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Return the seconds until the command prints the job's first line, and end it.

    Raises:
        RuntimeError: it ended without that line; the message is its last words.
    """
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environ, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("[rank 0"):
                    return time.perf_counter() - start
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # kubectl is a child of the shell
        errors.seek(0)
        raise RuntimeError(f"{command}: no line of the job: {(errors.read().splitlines() or [''])[-1]}")


BENCHMARK = Benchmark(
    name="submit",
    title="From the command to the first line",
    method="A job on a whole Kubernetes on the same machine; the node has the image; its program prints at once.",
    measure=measure,
    peers={"Kubernetes": peers.KUBERNETES},
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
