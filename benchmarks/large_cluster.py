"""`list`, `status` and `explain` in a large cluster, against the plain paged lists of the same objects.

`python -m benchmarks.large_cluster` starts a real API server with 1,000 nodes, 5,500 jobs with their pods, and 20,000
events (root, Go). No controller and no kubelet runs, which would change the objects. They are written into etcd as
JSON, which the API server reads like its own form. The bars: a command takes at most twice as long as the lists that it
needs, its start included, and 300 MiB.
"""

import base64
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peers
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from launcher.kinds.batch import BATCH_JOBS
from launcher.kube.access import ClusterAccess
from launcher.kube.api import Api, connect
from launcher.kube.resources import EVENTS, NODES, PODS, Resource
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.control_plane import ETCD
from tests.cluster.testbed.nodes.processes import output_of
from tests.local import large_cluster
from tests.local.large_cluster import FINISHED, LIVE, name_of

ROUNDS, QUICK_ROUNDS = 3, 1
TIME_BAR, MEMORY_BAR_MIB = 2.0, 300
NAMESPACE = "training"
WAITING, RUNNING = name_of(0), name_of(7)


class PlainList(NamedTuple):
    """A list that a command needs, with the selectors of its request."""

    resource: Resource
    labels: str = ""
    fields: str = ""


def _pods_of(job: str) -> PlainList:
    return PlainList(PODS, labels=f"batch.kubernetes.io/job-name={job}")


_LIVE_PODS = PlainList(PODS, fields="status.phase!=Succeeded,status.phase!=Failed")
_NODES, _EVENTS = PlainList(NODES), PlainList(EVENTS)
COMMANDS = {
    ("list",): (PlainList(BATCH_JOBS), PlainList(PODS)),
    ("status", RUNNING): (_pods_of(RUNNING), _EVENTS),
    ("status", WAITING): (_pods_of(WAITING), _EVENTS, _NODES),
    ("explain", WAITING): (_pods_of(WAITING), _EVENTS, _NODES, _LIVE_PODS),
}
_AT_ONCE = 100


def measure(quick: bool) -> list[Figure]:
    """Return the time and the memory of each command."""
    peers.need_cluster()
    with testbed.running(nodes=1, api_server_only=True) as cluster:
        _create_objects(cluster)
        api = connect(ClusterAccess(kubeconfig=cluster.kubeconfig, namespace=NAMESPACE))
        rounds = [_measure(cluster, api) for _ in range(1 + (QUICK_ROUNDS if quick else ROUNDS))]
    return [figure for words in COMMANDS for figure in _figures(words, [found[words] for found in rounds[1:]])]


def _create_objects(cluster: Cluster) -> None:
    words = ("render", "--backend", "batch", "--npus", "8", "--image", "r/pnas:1", "--name", "placeholder", "--json")
    done = subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, text=True, check=True)
    path = cluster.folder / "objects.jsonl"
    with path.open("w") as file:
        for key, item in _objects(json.loads(done.stdout)["items"][-1]):
            file.write(json.dumps([f"/registry/{key}", json.dumps(item)]) + "\n")
    inside = ["nsenter", f"--net={cluster.nodes[0].namespaces.network}", "--", sys.executable]
    output_of([*inside, "-m", "benchmarks.large_cluster", "fill", str(path)])


def _objects(template: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object with its key in etcd."""
    for number in range(large_cluster.NODES):
        node = large_cluster.node(number)
        yield f"minions/{node['metadata']['name']}", {"apiVersion": "v1", "kind": "Node", **node}
    for number in range(LIVE + FINISHED):
        job, pod = large_cluster.job(number, template), large_cluster.pod(number, template)
        yield f"jobs/{NAMESPACE}/{name_of(number)}", job
        yield f"pods/{NAMESPACE}/{pod['metadata']['name']}", {"apiVersion": "v1", "kind": "Pod", **pod}
    for number in range(large_cluster.EVENTS):
        event = large_cluster.event(number)
        event["metadata"]["namespace"] = NAMESPACE
        event["metadata"].pop("managedFields")
        yield f"events/{NAMESPACE}/{event['metadata']['name']}", {"apiVersion": "v1", "kind": "Event", **event}


def fill(path: Path) -> None:
    """Write the objects of a file into etcd, many at once."""
    rows = path.read_text().splitlines()
    for first in range(0, len(rows), _AT_ONCE):
        pairs = map(json.loads, rows[first : first + _AT_ONCE])
        coded = [[base64.b64encode(text.encode()).decode() for text in pair] for pair in pairs]
        puts = [{"requestPut": {"key": key, "value": value}} for key, value in coded]
        body = json.dumps({"success": puts}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{ETCD}/v3/kv/txn", data=body)) as answer:
            answer.read()


def _measure(cluster: Cluster, api: Api) -> dict[tuple[str, ...], tuple[float, float, int]]:
    """Return of each command its seconds, the seconds of its lists, and its memory in MiB."""
    found = {}
    for words, lists in COMMANDS.items():
        _, memory, seconds = large_cluster.run(cluster.kubeconfig, *words, "--namespace", NAMESPACE)
        began = time.perf_counter()
        for resource, labels, fields in lists:
            assert api.list(resource, labels=labels, fields=fields)[0]
        found[words] = seconds, time.perf_counter() - began, memory
    return found


def _figures(words: tuple[str, ...], turns: list[tuple[float, float, int]]) -> Iterator[Figure]:
    name = f"`{words[0]}`" + {WAITING: " of a waiting job", RUNNING: " of a running job"}.get(words[-1], "")
    lists = ", ".join(
        f"{item.resource.plural}{' (selected)' * bool(item.labels or item.fields)}" for item in COMMANDS[words]
    )
    seconds, plain, memory = zip(*turns, strict=True)
    yield Figure(f"{name}, wall time", "s", Series("command", seconds), Series(lists, plain), Bar(TIME_BAR))
    yield Figure(f"{name}, peak memory", "MiB", Series("command", memory), bar=Bar(MEMORY_BAR_MIB, of="ours"))


BENCHMARK = Benchmark(
    name="large_cluster",
    title="A large cluster",
    method=f"A real API server with {large_cluster.NODES:,} nodes, {FINISHED:,} finished and {LIVE} live jobs "
    f"with their pods, and {large_cluster.EVENTS:,} events. Whole commands with the start of Python, against the same "
    "paged lists, one after the other, in a running process. The server reads all pods for a selected list, too, "
    "because Debian's etcd is too old for its cache.",
    measure=measure,
    peers={"Kubernetes": peers.KUBERNETES},
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:  # in the network of etcd
        fill(Path(sys.argv[2]))
    else:
        sys.exit(run(BENCHMARK))
