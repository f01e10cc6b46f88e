"""The few requests that the simulations make to the API server: JSON over one connection, by a kubeconfig.

It is not the launcher's client on purpose: a fault in that one must not hide itself by standing on both sides.
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
    """The API server refuses, or cannot be reached.

    Attributes:
        status: HTTP's; 0 where there was no answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class Api:
    """A connection, which is made anew whenever it is lost. Not for several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        """`kubeconfig` has one context, and in it a client certificate or a token."""
        config = yaml.safe_load(kubeconfig.read_text())
        (cluster,), (user,) = config["clusters"], config["users"]
        server = urllib.parse.urlsplit(cluster["cluster"]["server"])
        assert server.hostname is not None
        authority = base64.b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        who = user["user"]
        self._headers = {"Authorization": f"Bearer {who['token']}"} if "token" in who else {}
        if "client-certificate-data" in who:
            # ssl reads a certificate and its key from files alone.
            with tempfile.NamedTemporaryFile() as pair:
                pair.write(b"".join(base64.b64decode(who[f"client-{part}-data"]) for part in ("certificate", "key")))
                pair.flush()
                context.load_cert_chain(pair.name)
        self._connection = http.client.HTTPSConnection(server.hostname, server.port, context=context, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Let the connection go; the next request makes another."""
        self._connection.close()

    def get(self, path: str, **parameters: str) -> Any:
        """An object, or a list.

        Raises:
            ApiError: there is no such object, or no right to it.
        """
        return self._request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")

    def answers(self, path: str) -> bool:
        """Whether there is such an object, or whatever else is asked for."""
        try:
            self._ask("GET", path)
        except ApiError:
            return False
        return True

    def merge(self, path: str, patch: dict[str, Any]) -> Any:
        """The object after a JSON merge patch.

        Raises:
            ApiError: it is refused; 409 where `metadata.resourceVersion` of the patch is an old one.
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
