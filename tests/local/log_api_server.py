"""A real HTTP server that plays an API server whose pods print numbered lines: lists, watches and the log endpoint.

Everything is a function of the time since the start: which lines a container has written, and the state of its pod.
So a reader that comes late or again finds what a real server would have. A kubelet can be away for a while: as on a
real API server, its streams then end as if they were whole, and new requests for logs are refused with status 500.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

JOB = "job"
TICK_S = 0.02
JOBS, PODS = "/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"
REFUSED = 'Get "https://10.0.0.1:10250/containerLogs/default": dial tcp 10.0.0.1:10250: connect: connection refused'


@dataclass(frozen=True)
class PrintingPod:
    """A pod of one device, whose container prints `lines` lines in equal intervals, and then their count.

    Attributes:
        starts_s, ends_s: seconds after the job's creation.
        file_lines: the number of lines in a log file, of which the node keeps the last one; all lines if None.
    """

    rank: int
    lines: int
    starts_s: float
    ends_s: float
    file_lines: int | None = None

    @property
    def name(self) -> str:
        return f"{JOB}-{self.rank}-abcde"

    def written(self, age_s: float) -> int:
        """Return how many lines the container has written, the last one with their count included."""
        if age_s >= self.ends_s:
            return self.lines + 1
        return max(0, int(self.lines * (age_s - self.starts_s) / (self.ends_s - self.starts_s)))

    def first(self, age_s: float) -> int:
        """Return the index of the first line that the node still has."""
        return 0 if self.file_lines is None else max(0, self.written(age_s) - 1) // self.file_lines * self.file_lines

    def timestamp_ns(self, index: int, created: float) -> int:
        age_s = min(self.starts_s + (index + 1) * (self.ends_s - self.starts_s) / self.lines, self.ends_s)
        return int((created + age_s) * 1e9) + index

    def line(self, index: int, created: float) -> bytes:
        """Return a line as the kubelet gives it, with its timestamp."""
        second, fraction = divmod(self.timestamp_ns(index, created), 1_000_000_000)
        moment = datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
        text = f"[rank {self.rank} cpu:{self.rank} #{index + 1}] step {'x' * (index % 40)}"
        if index == self.lines:
            text = f'[node {self.rank} #1] ended lines="{self.rank}:{self.lines}" outcome=succeeded'
        return f"{moment}.{fraction:09d}Z {text}\n".encode()


@dataclass(frozen=True)
class Change:
    """A new state of an object, `at_s` seconds after the job's creation."""

    at_s: float
    path: str
    item: Json


class LogApiServer:
    """Serves the job on a free port while the context lasts.

    Args:
        away: when the kubelets are away, as pairs of seconds after the job's creation.
    """

    def __init__(self, pods: Sequence[PrintingPod], away: Sequence[tuple[float, float]] = ()) -> None:
        self.pods = {pod.name: pod for pod in pods}
        self.away = away
        self.created = self._born = 0.0
        self.changes: list[Change] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port: int = self._server.server_port

    def __enter__(self) -> "LogApiServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.socket.close()

    def begin(self) -> None:
        """Create the job. No request may come before."""
        self.created, self._born = time.time(), time.monotonic()
        self.changes = self._all_changes()

    @property
    def age_s(self) -> float:
        """The seconds since the job's creation."""
        return time.monotonic() - self._born

    def is_away(self, age_s: float) -> bool:
        """Return whether the kubelets are away."""
        return any(first <= age_s < last for first, last in self.away)

    def _reported_s(self, age_s: float) -> float:
        """Return when the kubelet reports what happens at `age_s`."""
        return max([age_s, *(last + 0.5 for first, last in self.away if first <= age_s < last)])

    def _all_changes(self) -> list[Change]:
        changes = [Change(0, JOBS, self._job("False"))]
        for pod in self.pods.values():
            changes.append(Change(0, PODS, self._pod(pod, "Pending", {"waiting": {"reason": "ContainerCreating"}})))
            started = {"running": {"startedAt": self._clock(pod.starts_s)}}
            changes.append(Change(self._reported_s(pod.starts_s), PODS, self._pod(pod, "Running", started)))
            ended = {"terminated": {"exitCode": 0, "finishedAt": self._clock(pod.ends_s), "containerID": pod.name}}
            changes.append(Change(self._reported_s(pod.ends_s), PODS, self._pod(pod, "Succeeded", ended)))
        changes.append(Change(max(change.at_s for change in changes) + 0.3, JOBS, self._job("True")))
        changes.sort(key=lambda change: change.at_s)
        for version, change in enumerate(changes, start=1):
            change.item["metadata"]["resourceVersion"] = str(version)
        return changes

    def _clock(self, age_s: float) -> str:
        return datetime.fromtimestamp(self.created + age_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _job(self, complete: str) -> Json:
        condition = {"type": "Complete", "status": complete, "lastTransitionTime": self._clock(0)}
        metadata = {"name": JOB, "uid": "job", "creationTimestamp": self._clock(0)}
        return {"metadata": metadata, "spec": {}, "status": {"conditions": [condition]}}

    def _pod(self, pod: PrintingPod, phase: str, state: Json) -> Json:
        status = {"name": "trainer", "state": state, "restartCount": 0, "containerID": pod.name}
        return {
            "metadata": {"name": pod.name, "uid": pod.name, "namespace": "default", "labels": {}},
            "spec": {"nodeName": "node", "restartPolicy": "Never", "containers": [{"name": "trainer"}]},
            "status": {"phase": phase, "containerStatuses": [status]},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                with suppress(OSError):
                    if url.path.endswith("/log"):
                        server.send_log(self, url.path.split("/")[-2], query)
                    elif query.get("watch") == "true":
                        server.send_changes(self, url.path, query)
                    else:
                        server.send_objects(self, url.path, query)

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Print nothing."""

        return Handler

    def send_objects(self, handler: BaseHTTPRequestHandler, path: str, query: Json) -> None:
        """Answer with one object, or with a list."""
        changes = [change for change in self.changes if change.at_s <= self.age_s]
        items = {change.item["metadata"]["name"]: change.item for change in changes if change.path == path}
        if path == f"{JOBS}/{JOB}":
            send_json(handler, 200, [change.item for change in changes if change.path == JOBS][-1])
        elif path in (JOBS, PODS) or path.endswith("/events"):
            name = query.get("fieldSelector", "").partition("metadata.name=")[2]
            chosen = [item for item in items.values() if name in ("", item["metadata"]["name"])]
            send_json(handler, 200, {"items": chosen, "metadata": {"resourceVersion": str(len(changes))}})
        else:
            send_json(handler, 404, {"kind": "Status", "message": "not found"})

    def send_changes(self, handler: BaseHTTPRequestHandler, path: str, query: Json) -> None:
        """Answer a watch."""
        until_s = self.age_s + float(query["timeoutSeconds"])
        send_head(handler)
        seen: set[str] = set()
        for version, change in enumerate(self.changes, start=1):
            seen |= {change.item["metadata"]["name"]} if change.path == path else set()
            if change.path != path or version <= int(query["resourceVersion"]):
                continue
            time.sleep(max(0.0, min(change.at_s, until_s) - self.age_s))
            if self.age_s >= until_s:
                break
            send_chunk(handler, json.dumps({"type": "MODIFIED", "object": change.item}).encode() + b"\n")
        time.sleep(max(0.0, until_s - self.age_s))
        send_chunk(handler, b"")

    def send_log(self, handler: BaseHTTPRequestHandler, name: str, query: Json) -> None:
        """Answer a request for a log as the API server and the kubelet do together."""
        pod, age_s = self.pods[name], self.age_s
        if self.is_away(age_s):
            send_json(handler, 500, {"kind": "Status", "message": REFUSED})
            return
        if age_s < pod.starts_s:
            message = f'container "trainer" in pod "{name}" is waiting to start: ContainerCreating'
            send_json(handler, 400, {"kind": "Status", "message": message})
            return
        send_head(handler)
        for lines in self._log(pod, query):
            send_chunk(handler, lines)
        send_chunk(handler, b"")

    def _log(self, pod: PrintingPod, query: Json) -> Iterator[bytes]:
        age_s = self.age_s
        index, end = pod.first(age_s), pod.written(age_s)
        if "tailLines" in query:
            index = max(index, end - int(query["tailLines"]))
        if "sinceTime" in query:
            since_ns = int(datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp()) * 10**9
            while index < end and pod.timestamp_ns(index, self.created) < since_ns:
                index += 1
        while not self.is_away(self.age_s):
            while index < end and not self.is_away(self.age_s):
                block = range(index, min(index + 200, end))
                yield b"".join(pod.line(number, self.created) for number in block)
                index = block.stop
            if "follow" not in query or index > pod.lines:
                return
            time.sleep(TICK_S)
            end = pod.written(self.age_s)


def send_head(handler: BaseHTTPRequestHandler) -> None:
    """Begin an answer in chunks."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.flush()


def send_chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Send a chunk; an empty one ends the answer."""
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    handler.wfile.flush()


def send_json(handler: BaseHTTPRequestHandler, status: int, document: Json) -> None:
    """Send a whole answer."""
    data = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
