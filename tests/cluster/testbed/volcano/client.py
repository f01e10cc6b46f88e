"""The requests that a controller makes beyond reading: create, replace, patch, delete, and waiting for changes."""

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
    """The API's path of an object, or of all of its kind: `path(PODS, "n", "p", "binding")`."""
    words = [_ROOTS.get(kind, "/api/v1")]
    words += ["namespaces", namespace] if namespace else []
    return "/".join([*words, kind, *(word for word in (name, subresource) if word)])


class Client(Api):
    """One connection; not for several threads, except to interrupt it."""

    def interrupt(self) -> None:
        """End what another thread waits for on it."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def items(self, kind: str) -> list[Json]:
        """All objects of a kind, of all namespaces, as they are now.

        Raises:
            ApiError: they cannot be read.
        """
        found: list[Json] = self.get(path(kind))["items"]
        return found

    def namespaces(self) -> frozenset[str]:
        """Those in which this Volcano acts."""
        found = self.get("/api/v1/namespaces", labelSelector=f"{LABEL}=true")["items"]
        return frozenset(one["metadata"]["name"] for one in found)

    def create(self, where: str, body: Json, **parameters: str) -> Json:
        """The object as it has become.

        Raises:
            ApiError: it is refused, or there (409).
        """
        return self._write("POST", f"{where}?{urllib.parse.urlencode(parameters)}", body)

    def replace(self, where: str, body: Json) -> Json:
        """The object as it has become.

        Raises:
            ApiError: it is gone (404), or somebody else has written it (409).
        """
        return self._write("PUT", where, body)

    def merge_conditions(self, where: str, patch: Json) -> Json:
        """A strategic merge patch, which merges a pod's conditions by their type.

        Raises:
            ApiError: it is refused.
        """
        return self._write("PATCH", where, patch, "application/strategic-merge-patch+json")

    def remove(self, where: str, *, uid: str | None = None, propagation: str = "Background") -> bool:
        """Delete it; False where it, or the one with this uid, is gone already.

        Raises:
            ApiError: it is refused.
        """
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._write("DELETE", where, options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
            return False
        return True

    def changes(self, where: str, *, version: str = "") -> Iterator[Json]:
        """Watch events, the first of which tell what is there unless `version` is given; ends when the server wants.

        Raises:
            ApiError: it cannot be watched.
            OSError, HTTPException: the connection has broken, or nothing has come for a while.
        """
        query = urllib.parse.urlencode({"watch": "true", "resourceVersion": version})
        self._connection.request("GET", f"{where}?{query}", headers=self._headers)
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
            # The server closes a connection that has not been used for a while, and says so only to the next request.
            return super()._request(method, path, body, headers)

    def _write(self, method: str, where: str, body: Json, kind: str = "application/json") -> Json:
        answer: Json = self._request(method, where, json.dumps(body), {"Content-Type": kind})
        return answer


@contextmanager
def tolerating(*statuses: int) -> Iterator[None]:
    """Go on where the API server answers one of these."""
    try:
        yield
    except ApiError as error:
        if error.status not in statuses:
            raise


def complaint(error: ApiError) -> str:
    """What the API server says, without the request and the object it is about."""
    _before, found, after = str(error).partition('"message":"')
    return after.partition('","')[0].replace('\\"', '"') if found else str(error)


def announce(kubeconfig: Path, kind: str, changed: threading.Event) -> NoReturn:
    """Set `changed` whenever an object of this kind has changed, for ever; run it as a daemon thread.

    What has changed is read anew: a list is the truth at one moment, and needs no care for what a watch has missed.
    """
    while True:
        with closing(Client(kubeconfig)) as client, suppress(ApiError, OSError, HTTPException):
            for _change in client.changes(path(kind)):
                changed.set()
        changed.set()
        time.sleep(0.2)
