"""A STAND-IN for a registry of images: it has no image for the nodes, in the three ways in which registries say so.

`missing` does not exist, `private` needs a login, and `other` is built for another processor only. Run as
`python -m tests.cluster.testbed.registry` in a node's network: containerd asks a registry on 127.0.0.1 without TLS.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT
from tests.cluster.testbed.nodes.processes import Processes

PORT = 5000
ADDRESS = f"127.0.0.1:{PORT}"
_MANIFEST, _INDEX = (f"application/vnd.oci.image.{name}.v1+json" for name in ("manifest", "index"))
_PLATFORM = {"architecture": "s390x", "os": "linux"}
_OTHER = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [
            {
                "mediaType": _MANIFEST,
                "digest": f"sha256:{hashlib.sha256().hexdigest()}",
                "size": 2,
                "platform": _PLATFORM,
            }
        ],
    }
).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answer as the OCI distribution specification says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request for a manifest."""
        if self.path.startswith("/v2/other/"):
            headers = {
                "Content-Type": _INDEX,
                "Docker-Content-Digest": f"sha256:{hashlib.sha256(_OTHER).hexdigest()}",
            }
            self._answer(200, _OTHER, headers)
        elif self.path.startswith("/v2/private/"):
            self._answer(401, _error("UNAUTHORIZED"), {"WWW-Authenticate": 'Basic realm="registry"'})
        else:
            self._answer(404, _error("MANIFEST_UNKNOWN"), {})

    def do_HEAD(self) -> None:
        """Answer with the headers only."""
        self.do_GET()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _error(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()


@contextmanager
def registry(cluster: Cluster) -> Iterator[None]:
    """Serve the registry to the first node while the context lasts.

    Raises:
        NotABedError: the cluster is not the test bed.
        StartError: it does not start.
    """
    log, processes = cluster.folder / "logs" / "registry.log", Processes(cluster.folder / "logs")
    inside = ["nsenter", f"--net={cluster.nodes[0].namespaces.network}", "--", sys.executable, "-m", __name__]
    processes.start("registry", inside, environ={"PYTHONPATH": str(CHECKOUT)})
    try:
        processes.until("registry", lambda: "serving" in log.read_text())
        yield
    finally:
        processes.stop_all()


def main() -> None:
    """Serve for ever."""
    server = ThreadingHTTPServer(("127.0.0.1", PORT), _Handler)
    sys.stdout.write(f"serving on {ADDRESS}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
