"""Reading a pod's log: `launcher.podlogs` and the launcher as a whole against `kubectl logs` and stern.

`python -m benchmarks.follow` starts the test bed (root, Go). A pod prints half a million lines. The clients read them
in turns. Then the benchmark measures how long a new line takes to each reader. The bars: stern's rate, at most 1.2
times stern's CPU, 80 MiB, and 1.2 times kubectl's 99th percentile of the delay.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from launcher.podlogs.lines import timestamp_ns
from tests.cluster.support import line_printer
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster

LINES, WIDTH, ROUNDS, QUICK_ROUNDS = 500_000, 63, 3, 1
RATE, DELAYS = 200, 600
WALL_BAR, CPU_BAR, MEMORY_BAR_MIB, DELAY_BAR = 1.0, 1.2, 80, 1.2
NAMESPACE, PRINTED, PRINTING = "follow", "printed", "printing"
LIBRARY, LAUNCHER, KUBECTL, STERN = "launcher.podlogs", "python -m launcher logs", "kubectl logs", "stern"


@dataclass(frozen=True)
class Reading:
    """The cost of reading the whole log once: seconds, and the peak of the resident memory."""

    wall_s: float
    cpu_s: float
    mebibytes: float


def measure(quick: bool) -> list[Figure]:
    """Return the figures of reading a whole log, and of the delay of new lines."""
    peers.need_cluster()
    stern, rounds = peers.stern(), QUICK_ROUNDS if quick else ROUNDS
    with (
        tempfile.TemporaryDirectory() as folder,
        testbed.running(nodes=1, npus=0, container_log_max_size="1Gi") as cluster,
    ):
        testbed.create_namespace(cluster, NAMESPACE)
        line_printer.load_image(cluster, Path(folder))
        readings = _readings(cluster, Path(folder), stern, rounds)
        delays = _delays(cluster, rounds)
    return [*_reading_figures(readings), *_delay_figures(delays)]


def _readings(cluster: Cluster, folder: Path, stern: Path, rounds: int) -> dict[str, list[Reading]]:
    """Return `rounds` readings of each client, taken in turns, after one reading whose output is checked."""
    cluster.create(_job(PRINTED, LINES, 0, WIDTH, 0))
    cluster.kubectl("wait", f"job/{PRINTED}", "--namespace", NAMESPACE, "--for=condition=Complete", "--timeout=300s")
    name = _pod(cluster, PRINTED)
    config, python = str(cluster.kubeconfig), sys.executable
    kubectl = [str(cluster.program), f"--kubeconfig={config}", "--namespace", NAMESPACE]
    commands = {
        LIBRARY: [python, "-m", "benchmarks.log_reader", config, NAMESPACE, name, "plain"],
        LAUNCHER: [python, "-m", "launcher", "logs", PRINTED, "--raw", "--kubeconfig", config],
        KUBECTL: [*kubectl, "logs", name],
    }
    words = ["--no-follow", "--tail=-1", "--output=raw", "--only-log-lines", name]
    commands[STERN] = [str(stern), f"--kubeconfig={config}", "--namespace", NAMESPACE, *words]
    for client, command in commands.items():
        with (folder / "read").open("wb") as out:
            _measure(command, out.fileno())
        lines = (folder / "read").read_bytes().count(b"\n")
        assert lines == LINES, f"{client} read {lines} lines"
    turns: dict[str, list[Reading]] = {client: [] for client in commands}
    for _ in range(rounds):
        for client, command in commands.items():
            turns[client].append(_measure(command, subprocess.DEVNULL))
    return turns


def _job(name: str, *words: object) -> dict[str, Any]:
    """Return a job with the labels of a launcher's job."""
    pod = line_printer.pod(NAMESPACE, name, *words)
    labels = {"pnas/job": name, "app.kubernetes.io/name": "pnas"}
    template = {"metadata": {"labels": labels}, "spec": pod["spec"]}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}


def _pod(cluster: Cluster, job: str) -> str:
    [pod] = cluster.get("pods", "--namespace", NAMESPACE, "--selector", f"pnas/job={job}")["items"]
    return str(pod["metadata"]["name"])


def _environ() -> dict[str, str]:
    return {**os.environ, "PNAS_NAMESPACE": NAMESPACE, "PNAS_BACKEND": "batch"}


def _measure(command: Sequence[str], out: int) -> Reading:
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=out, env=_environ()) as process:
        # The peak that the kernel reports at the end includes this process's memory at the fork.
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            peak = max(peak, _peak_kib(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Reading(wall, usage.ru_utime + usage.ru_stime, peak / 1024)


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _delays(cluster: Cluster, rounds: int) -> dict[str, list[list[float]]]:
    """Return for each turn the seconds from the runtime's timestamp to the arrival of each line at a reader."""
    cluster.create(_job(PRINTING, 10**9, RATE, 10, 0))
    pods = ("pod", f"--selector=pnas/job={PRINTING}", "--namespace", NAMESPACE)
    for condition in ("--for=create", "--for=condition=Ready"):
        cluster.kubectl("wait", *pods, condition, "--timeout=60s")
    name = _pod(cluster, PRINTING)
    config = str(cluster.kubeconfig)
    kubectl_words = [f"--kubeconfig={config}", "--namespace", NAMESPACE, "logs", "-f", "--timestamps", name]
    launcher_words = ["logs", PRINTING, "-f", "--raw", "--timestamps", "--tail", "0", "--kubeconfig", config]
    commands = {
        LIBRARY: [sys.executable, "-m", "benchmarks.log_reader", config, NAMESPACE, name, "stamped"],
        LAUNCHER: [sys.executable, "-m", "launcher", *launcher_words],
        KUBECTL: [str(cluster.program), *kubectl_words],
    }
    delays: dict[str, list[list[float]]] = {client: [] for client in commands}
    for _ in range(rounds):
        for client, command in commands.items():
            delays[client].append(_delays_of(command))
    return delays


def _delays_of(command: Sequence[str]) -> list[float]:
    delays: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=_environ()) as process:
        assert process.stdout is not None
        try:
            start = time.time()
            while len(delays) < DELAYS and (block := process.stdout.read(1 << 16)):
                arrival = time.time()
                for line in block.splitlines():
                    stamp = timestamp_ns(line)
                    # Ignore lines from the start of the reader: they do not show its delay.
                    if stamp is not None and stamp / 1e9 > start + 2:
                        delays.append(arrival - stamp / 1e9)
        finally:
            process.kill()
    assert len(delays) >= DELAYS, f"{command} has ended before the log"
    return delays


def _reading_figures(readings: Mapping[str, Sequence[Reading]]) -> Iterator[Figure]:
    quantities: Sequence[tuple[str, str, Callable[[Reading], float], Bar]] = (
        ("wall time", "s", lambda reading: reading.wall_s, Bar(WALL_BAR)),
        ("CPU time of the client", "s", lambda reading: reading.cpu_s, Bar(CPU_BAR)),
        ("peak memory", "MiB", lambda reading: reading.mebibytes, Bar(MEMORY_BAR_MIB, of="ours")),
    )
    for name, unit, quantity, bar in quantities:
        series = {client: Series(f"`{client}`", list(map(quantity, turns))) for client, turns in readings.items()}
        for client in (LIBRARY, LAUNCHER):
            yield Figure(name, unit, series[client], series[STERN], bar)
            yield Figure(name, unit, series[client], series[KUBECTL])


def _delay_figures(delays: Mapping[str, Sequence[Sequence[float]]]) -> Iterator[Figure]:
    for percentile, bar in ((50, None), (99, Bar(DELAY_BAR))):
        series = {
            client: Series(
                f"`{client}`", [1000 * statistics.quantiles(seconds, n=100)[percentile - 1] for seconds in turns]
            )
            for client, turns in delays.items()
        }
        for client in (LIBRARY, LAUNCHER):
            name = f"from the runtime's stamp to the reader, {percentile}th percentile"
            yield Figure(name, "ms", series[client], series[KUBECTL], bar)


BENCHMARK = Benchmark(
    name="follow",
    title="Reading a pod's log",
    method=f"{LINES:,} lines of {WIDTH + 25} bytes of a finished pod, read to nowhere, next to a whole "
    f"Kubernetes on the same machine. For the delays, {RATE} lines/s and {DELAYS:,} lines in each turn.",
    measure=measure,
    peers={"stern": peers.STERN, "Kubernetes": peers.KUBERNETES},
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
