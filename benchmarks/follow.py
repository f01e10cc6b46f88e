"""Reading a pod's log: `launcher.podlogs` and the launcher as a whole against `kubectl logs` and stern.

`python -m benchmarks.follow` starts the test bed (root, Go), lets a pod print a million lines, has every client read
them in turns, and then asks how long a fresh line takes to each reader. The result is kept in
benchmarks/results/follow.md; the bars: stern's rate, at most 1.2 times stern's CPU, 80 MiB, and 1.2 times kubectl's
99th percentile of the delay.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.launcher_start import machine
from launcher.podlogs.stamps import stamp_ns
from tests.cluster.support import line_printer
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster

LINES, WIDTH, ROUNDS = 1_000_000, 63, 3
RATE, DELAYS = 100, 1000
CPU_BAR, MEMORY_BAR_MIB, DELAY_BAR = 1.2, 80, 1.2
NAMESPACE, PRINTED, PRINTING = "follow", "printed", "printing"
LIBRARY, LAUNCHER, KUBECTL, STERN = "launcher.podlogs", "python -m launcher logs", "kubectl logs", "stern"
RESULT = Path(__file__).parent / "results" / "follow.md"


@dataclass(frozen=True)
class Reading:
    """What reading the whole log once took: seconds, and the peak of the resident memory."""

    wall_s: float
    cpu_s: float
    mebibytes: float


def main() -> int:
    """Measure, print and keep the result; 1 if a bar is missed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        testbed.running(nodes=1, npus=0, container_log_max_size="1Gi") as cluster,
    ):
        testbed.create_namespace(cluster, NAMESPACE)
        line_printer.load_image(cluster, Path(folder))
        readings = _readings(cluster, Path(folder))
        delays = _delays(cluster)
    report, met = _report(readings, delays)
    print(report)
    RESULT.write_text(report + "\n", encoding="utf-8")
    return 0 if met else 1


def _readings(cluster: Cluster, folder: Path) -> dict[str, list[Reading]]:
    """Of each client, `ROUNDS` in turns, after one whose output is checked."""
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
    commands[STERN] = [str(peers.stern()), f"--kubeconfig={config}", "--namespace", NAMESPACE, *words]
    for client, command in commands.items():
        with (folder / "read").open("wb") as out:
            _measured(command, out.fileno())
        lines = (folder / "read").read_bytes().count(b"\n")
        assert lines == LINES, f"{client} read {lines} lines"
    turns: dict[str, list[Reading]] = {client: [] for client in commands}
    for _ in range(ROUNDS):
        for client, command in commands.items():
            turns[client].append(_measured(command, subprocess.DEVNULL))
    return turns


def _job(name: str, *words: object) -> dict[str, Any]:
    """A job that the launcher takes for its own."""
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


def _measured(command: Sequence[str], out: int) -> Reading:
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=out, env=_environ()) as process:
        # What the kernel says at the end includes what this process had when it forked.
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


def _delays(cluster: Cluster) -> dict[str, list[float]]:
    """Seconds from the runtime's stamp to the line's arrival at a reader, in turns."""
    cluster.create(_job(PRINTING, 10**9, RATE, 10, 0))
    pods = ("pod", f"--selector=pnas/job={PRINTING}", "--namespace", NAMESPACE)
    for what in ("--for=create", "--for=condition=Ready"):
        cluster.kubectl("wait", *pods, what, "--timeout=60s")
    name = _pod(cluster, PRINTING)
    config = str(cluster.kubeconfig)
    words = [f"--kubeconfig={config}", "--namespace", NAMESPACE, "logs", "-f", "--timestamps", name]
    shown = ["logs", PRINTING, "-f", "--raw", "--timestamps", "--tail", "0", "--kubeconfig", config]
    commands = {
        LIBRARY: [sys.executable, "-m", "benchmarks.log_reader", config, NAMESPACE, name, "stamped"],
        LAUNCHER: [sys.executable, "-m", "launcher", *shown],
        KUBECTL: [str(cluster.program), *words],
    }
    delays: dict[str, list[float]] = {client: [] for client in commands}
    for _ in range(ROUNDS):
        for client, command in commands.items():
            delays[client] += _delays_of(command)
    return delays


def _delays_of(command: Sequence[str]) -> list[float]:
    found: list[float] = []
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, bufsize=0, env=_environ()) as process:
        assert process.stdout is not None
        begun = time.time()
        while len(found) < DELAYS:
            block = process.stdout.read(1 << 16)
            now = time.time()
            for line in block.splitlines():
                stamp = stamp_ns(line)
                # What was written before the reader had got going says nothing of it.
                if stamp is not None and stamp / 1e9 > begun + 2:
                    found.append(now - stamp / 1e9)
        process.terminate()
    return found


def _report(readings: Mapping[str, Sequence[Reading]], delays: Mapping[str, Sequence[float]]) -> tuple[str, bool]:
    """The tables, and whether the bars are met."""
    medians = {client: _median(rounds) for client, rounds in readings.items()}
    rows = [
        f"| {client} | {one.wall_s:.1f} | {LINES / one.wall_s / 1000:.0f}k | {one.cpu_s:.2f} | "
        f"{one.cpu_s / medians[STERN].cpu_s:.2f} | {one.mebibytes:.0f} |"
        for client, one in medians.items()
    ]
    percentiles = {client: statistics.quantiles(found, n=100) for client, found in delays.items()}
    delay_rows = [f"| {name} | {cuts[49] * 1000:.2f} | {cuts[98] * 1000:.2f} |" for name, cuts in percentiles.items()]
    ours = [medians[name] for name in (LIBRARY, LAUNCHER)]
    ratio = max(percentiles[name][98] for name in (LIBRARY, LAUNCHER)) / percentiles[KUBECTL][98]
    bars = {
        "stern's rate or better": max(one.wall_s for one in ours) <= medians[STERN].wall_s,
        f"CPU at most {CPU_BAR} times stern's": max(one.cpu_s for one in ours) <= CPU_BAR * medians[STERN].cpu_s,
        f"at most {MEMORY_BAR_MIB} MiB": max(one.mebibytes for one in ours) <= MEMORY_BAR_MIB,
        f"99th percentile of the delay at most {DELAY_BAR} times kubectl's ({ratio:.2f})": ratio <= DELAY_BAR,
    }
    text = [
        "# Reading a pod's log",
        "",
        "Command: `python -m benchmarks.follow`",
        "",
        f"{LINES:,} lines of {WIDTH + 25} bytes of a finished pod, read to nowhere; medians of {ROUNDS} in turns, each",
        f"beside a whole Kubernetes on the same machine. Python {sys.version.split()[0]}, stern {peers.STERN};",
        f"{machine()}.",
        "",
        "| client | wall s | lines/s | client CPU s | of stern's | peak MiB |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"From the runtime's stamp to the reader, {RATE} lines/s, {DELAYS * ROUNDS} lines in {ROUNDS} turns, ms:",
        "",
        "| client | p50 | p99 |",
        "|---|---|---|",
        *delay_rows,
        "",
        *(f"- {'met' if met else 'MISSED'}: {bar}" for bar, met in bars.items()),
    ]
    return "\n".join(text), all(bars.values())


def _median(rounds: Sequence[Reading]) -> Reading:
    def middle(value: Callable[[Reading], float]) -> float:
        return statistics.median(map(value, rounds))

    return Reading(middle(lambda one: one.wall_s), middle(lambda one: one.cpu_s), middle(lambda one: one.mebibytes))


if __name__ == "__main__":
    sys.exit(main())
