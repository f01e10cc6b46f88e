"""The few requests that the simulations send to the API server: JSON over one connection, by a kubeconfig.

It deliberately differs from the launcher's client: with one shared client, a fault could cancel itself out.
"""

import base64
import http.client
import json
import ssl
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

TIMEOUT_S = 30


class ApiError(Exception):
    """The API server refuses a request, or cannot be reached.

    Attributes:
        status: the HTTP status; 0 without an answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class Api:
    """A connection that reconnects after a loss; only for one thread."""

    def __init__(self, kubeconfig: Path) -> None:
        """Read a kubeconfig that has one context with a client certificate or a token."""
        config = yaml.safe_load(kubeconfig.read_text())
        (cluster,), (user,) = config["clusters"], config["users"]
        server = urllib.parse.urlsplit(cluster["cluster"]["server"])
        assert server.hostname is not None
        authority = base64.b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        credentials = user["user"]
        self._headers = {"Authorization": f"Bearer {credentials['token']}"} if "token" in credentials else {}
        if "client-certificate-data" in credentials:
            # ssl reads a certificate and its key only from files.
            with tempfile.NamedTemporaryFile() as pair:
                pair.write(
                    b"".join(base64.b64decode(credentials[f"client-{part}-data"]) for part in ("certificate", "key"))
                )
                pair.flush()
                context.load_cert_chain(pair.name)
        self._connection = http.client.HTTPSConnection(server.hostname, server.port, context=context, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def get(self, path: str, **parameters: str) -> Any:
        """Return an object or a list.

        Raises:
            ApiError: the object does not exist, or there is no right to read it.
        """
        return self._request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")

    def answers(self, path: str) -> bool:
        """Return whether the API server answers this path with success."""
        try:
            self._ask("GET", path)
        except ApiError:
            return False
        return True

    def merge(self, path: str, patch: dict[str, Any]) -> Any:
        """Return the object after a JSON merge patch.

        Raises:
            ApiError: the patch is refused; 409 if its `metadata.resourceVersion` is out of date.
        """
        return self._request("PATCH", path, json.dumps(patch), {"Content-Type": "application/merge-patch+json"})

    def _request(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Any:
        return json.loads(self._ask(method, path, body, headers))

    def _ask(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> str:
        try:
            self._connection.request(method, path, body, {**self._headers, **(headers or {})})
            answer = self._connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ApiError(0, f"no answer: {error!r}") from error
        if answer.status >= 400:
            raise ApiError(answer.status, f"{method} {path}: {text[:300]}")
        return text
