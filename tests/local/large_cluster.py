"""An API server over HTTP with many objects, as large clusters have them, and pages as the real one gives them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
NPU = "huawei.com/Ascend910"
PAGE = 500
MADE = "2026-11-30T08:00:00Z"
NODES, FINISHED, LIVE, EVENTS = 1000, 5000, 500, 20_000
_MEASURE = r"""
import re, sys
from launcher.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
# Not ru_maxrss, which counts the process that started this one too.
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())
print(code, int(peak[1]) // 1024, file=sys.stderr)
"""


def node(number: int) -> Json:
    """Return a node of eight NPUs, with fifty images; a node without a live pod is cordoned."""
    images = [{"names": [f"registry.example/team/image-{index}:v{number % 7}"], "sizeBytes": 1} for index in range(50)]
    sizes = {"cpu": "192", "memory": "768Gi", "pods": "110", NPU: "8"}
    status = {"capacity": sizes, "allocatable": sizes, "conditions": [{"type": "Ready", "status": "True"}]}
    spec = {} if 0 < number < LIVE else {"unschedulable": True}
    labels = {"kubernetes.io/hostname": f"node{number}"}
    return {"metadata": _meta(f"node{number}", labels=labels), "spec": spec, "status": {**status, "images": images}}


def job(number: int, template: Json) -> Json:
    """Return a job by its number; the first `LIVE` ones have not ended, and job 0 waits."""
    body: Json = json.loads(json.dumps(template).replace("placeholder", name_of(number)))
    body["metadata"] |= {"uid": f"job-{number}", "namespace": "training", "creationTimestamp": MADE}
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-30T09:00:00Z"}
    body["status"] = {"conditions": [ended]} if number >= LIVE else {}
    return body


def pod(number: int, template: Json) -> Json:
    """Return the only pod of a job."""
    item: Json = json.loads(json.dumps(template["spec"]["template"]).replace("placeholder", name_of(number)))
    labels = {**item["metadata"]["labels"], "batch.kubernetes.io/job-name": name_of(number)}
    item["metadata"] = {**item["metadata"], **_meta(f"{name_of(number)}-x2b4c", labels=labels), "namespace": "training"}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": MADE}
    if number:
        item["spec"]["nodeName"] = f"node{number % NODES}"
        item["status"] = {"phase": "Running" if number < LIVE else "Succeeded", "conditions": [placed]}
    else:
        refused = {"reason": "Unschedulable", "message": f"0/{NODES} nodes are available: {NODES} Insufficient {NPU}."}
        item["status"] = {"phase": "Pending", "conditions": [placed | {"status": "False"} | refused]}
    return item


def event(number: int) -> Json:
    """Return an event of one of the jobs' pods."""
    name = f"{name_of(number % (LIVE + FINISHED))}-x2b4c"
    about = {"kind": "Pod", "namespace": "training", "name": name, "uid": f"uid-{name}"}
    text = {"reason": "FailedScheduling", "type": "Warning", "message": "0/1000 nodes are available: " + 40 * "word "}
    meta = {**_meta(f"event-{number}"), "managedFields": [{"manager": "kubelet", "operation": "Update"}] * 3}
    return {"metadata": meta, "involvedObject": about, **text, "lastTimestamp": MADE, "count": 3}


def name_of(number: int) -> str:
    """Return the name of a job."""
    return f"pnas-full-{number:05}"


def _meta(name: str, labels: Json | None = None) -> Json:
    return {"name": name, "uid": f"uid-{name}", "creationTimestamp": MADE, "labels": labels or {}}


class LargeCluster:
    """The objects by their paths, already as JSON, and the requests that came.

    Attributes:
        requests: the path of each request.
    """

    def __init__(self, template: Json) -> None:
        self.requests: list[str] = []
        every = range(LIVE + FINISHED)
        self._jobs = {name_of(number): json.dumps(job(number, template)) for number in every}
        self._pods = [json.dumps(pod(number, template)) for number in every]
        self._nodes = [json.dumps(node(number)) for number in range(NODES)]
        self._events = [json.dumps(event(number)) for number in range(EVENTS)]

    def answer(self, path: str, query: dict[str, str]) -> bytes | None:
        """Return the answer to a GET; None if there is no such object."""
        self.requests.append(path)
        _, _, last = path.rpartition("/")
        if last in self._jobs:
            return self._jobs[last].encode()
        if last == "log":
            return b"[rank 0 npu:0 #1] progress done=12.3 left_s=7380 left_low_s=7000 left_high_s=9000\n"
        if "status.phase!=" in query.get("fieldSelector", ""):
            return self._page(self._pods[:LIVE], query)
        selected = query.get("labelSelector", "").partition("batch.kubernetes.io/job-name=")[2]
        lists: dict[str, Callable[[], list[str]]] = {
            "jobs": lambda: list(self._jobs.values()),
            "pods": lambda: [self._pods[int(selected.rpartition("-")[2])]] if selected else self._pods,
            "nodes": lambda: self._nodes,
            "events": lambda: self._events,
            "v1": lambda: [],
            "resourcequotas": lambda: [],
        }
        return self._page(lists[last](), query) if last in lists and "volcano" not in path else None

    @staticmethod
    def _page(items: list[str], query: dict[str, str]) -> bytes:
        first = int(query.get("continue") or 0)
        last = first + int(query.get("limit") or len(items) or 1)
        meta = {"resourceVersion": "1", **({"continue": str(last)} if last < len(items) else {})}
        return f'{{"metadata": {json.dumps(meta)}, "items": [{",".join(items[first:last])}]}}'.encode()


@contextmanager
def serving(cluster: LargeCluster, folder: Path) -> Iterator[Path]:
    """Serve the cluster; yield a kubeconfig for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = cluster.answer(url.path, {key: values[0] for key, values in parse_qs(url.query).items()})
            self.send_response(404 if body is None else 200)
            text = b'{"message": "not found"}' if body is None else body
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    clusters = [{"name": "c", "cluster": {"server": address}}]
    context = [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "training"}}]
    config = {"clusters": clusters, "contexts": context, "users": [{"name": "u", "user": {}}], "current-context": "x"}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    try:
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()


def run(kubeconfig: Path, *words: str) -> tuple[str, int, float]:
    """Run a command in its own process; return what it printed, its memory in MiB, and its time in seconds."""
    home = {"HOME": str(kubeconfig.parent), "XDG_STATE_HOME": str(kubeconfig.parent), "KUBECONFIG": str(kubeconfig)}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
    command = [sys.executable, "-c", _MEASURE, *words, "--backend", "batch"]
    began = time.monotonic()
    done = subprocess.run(command, env={**environ, **home}, capture_output=True, text=True, check=True)
    code, memory = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return done.stdout, int(memory), time.monotonic() - began
