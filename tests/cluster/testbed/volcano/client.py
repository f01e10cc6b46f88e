"""A controller's requests other than reading: create, replace, patch, delete, and watch."""

import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn

from tests.cluster.testbed.api import Api, ApiError
from tests.cluster.testbed.volcano import LABEL

Json = dict[str, Any]

JOBS, PODS, GROUPS, QUEUES, COMMANDS = "jobs", "pods", "podgroups", "queues", "commands"
_ROOTS = {
    JOBS: "/apis/batch.volcano.sh/v1alpha1",
    GROUPS: "/apis/scheduling.volcano.sh/v1beta1",
    QUEUES: "/apis/scheduling.volcano.sh/v1beta1",
    COMMANDS: "/apis/bus.volcano.sh/v1alpha1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


def path(kind: str, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
    """Return the API's path of an object, or of all objects of its kind: `path(PODS, "n", "p", "binding")`."""
    words = [_ROOTS.get(kind, "/api/v1")]
    words += ["namespaces", namespace] if namespace else []
    return "/".join([*words, kind, *(word for word in (name, subresource) if word)])


class Client(Api):
    """One connection for one thread; another thread may only interrupt it."""

    def interrupt(self) -> None:
        """End a request for which another thread waits on this connection."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def items(self, kind: str) -> list[Json]:
        """Return all objects of a kind in all namespaces.

        Raises:
            ApiError: they cannot be read.
        """
        objects: list[Json] = self.get(path(kind))["items"]
        return objects

    def namespaces(self) -> frozenset[str]:
        """Return the namespaces in which the stand-in acts."""
        items = self.get("/api/v1/namespaces", labelSelector=f"{LABEL}=true")["items"]
        return frozenset(item["metadata"]["name"] for item in items)

    def create(self, object_path: str, body: Json, **parameters: str) -> Json:
        """Create an object and return it.

        Raises:
            ApiError: it is refused, or exists (409).
        """
        return self._write("POST", f"{object_path}?{urllib.parse.urlencode(parameters)}", body)

    def replace(self, object_path: str, body: Json) -> Json:
        """Replace an object and return it.

        Raises:
            ApiError: it is gone (404), or another client has written it (409).
        """
        return self._write("PUT", object_path, body)

    def merge_conditions(self, object_path: str, patch: Json) -> Json:
        """Apply a strategic merge patch, which merges a pod's conditions by their type.

        Raises:
            ApiError: it is refused.
        """
        return self._write("PATCH", object_path, patch, "application/strategic-merge-patch+json")

    def remove(self, object_path: str, *, uid: str | None = None, propagation: str = "Background") -> bool:
        """Delete an object; return False if it, or the object with this uid, does not exist.

        Raises:
            ApiError: it is refused.
        """
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._write("DELETE", object_path, options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
            return False
        return True

    def changes(self, object_path: str, *, version: str = "") -> Iterator[Json]:
        """Yield watch events until the server ends the watch; without `version`, the existing objects come first.

        Raises:
            ApiError: the watch is refused.
            OSError, HTTPException: the connection has broken, or no event has come for a while.
        """
        query = urllib.parse.urlencode({"watch": "true", "resourceVersion": version})
        self._connection.request("GET", f"{object_path}?{query}", headers=self._headers)
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise ApiError(answer.status, answer.read().decode()[:300])
        for line in answer:
            yield json.loads(line)

    def _request(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Any:
        try:
            return super()._request(method, path, body, headers)
        except ApiError as error:
            if error.status:
                raise
            # The server closes an idle connection, and only the next request shows it.
            return super()._request(method, path, body, headers)

    def _write(self, method: str, object_path: str, body: Json, kind: str = "application/json") -> Json:
        answer: Json = self._request(method, object_path, json.dumps(body), {"Content-Type": kind})
        return answer


@contextmanager
def ignoring(*statuses: int) -> Iterator[None]:
    """Ignore these statuses of the API server."""
    try:
        yield
    except ApiError as error:
        if error.status not in statuses:
            raise


def error_message(error: ApiError) -> str:
    """Return the message of the API server, without the request and its object."""
    _before, separator, after = str(error).partition('"message":"')
    return after.partition('","')[0].replace('\\"', '"') if separator else str(error)


def signal_changes(kubeconfig: Path, kind: str, changed: threading.Event) -> NoReturn:
    """Set `changed` whenever an object of this kind has changed, for ever; run it as a daemon thread.

    The caller reads the changed objects again: a list is complete at one moment, in spite of events that a watch has
    missed.
    """
    while True:
        with closing(Client(kubeconfig)) as client, suppress(ApiError, OSError, HTTPException):
            for _change in client.changes(path(kind)):
                changed.set()
        changed.set()
        time.sleep(0.2)
