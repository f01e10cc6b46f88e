"""Requests to the API server: JSON in, JSON out. Every failure is one typed error that names the next step.

A request that changes the cluster is never repeated after a lost connection, because only its answer may have been
lost. A server that is too busy (429) has done nothing, so any request is repeated when the server asks for it. After a
refused login the credentials are read again, once.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from launcher.errors import ApiError, UnreachableError
from launcher.kube.access import ClusterAccess, Credentials
from launcher.kube.resources import Resource
from launcher.kube.retry import BUSIEST_S, BUSY_TRIES, Answer, busy_delay_s
from trainer.shared.durations import format_duration

if TYPE_CHECKING:
    from socket import socket

    from urllib3 import BaseHTTPResponse

    from launcher.kube.http import Connections

Json = dict[str, Any]

READ_S = 30.0
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
"""A patch that knows the lists of built-in objects: a condition replaces another of the same type."""
TAKEN = 409
"""The HTTP status of a creation whose name is not free."""
_SHOWN_BYTES = 512
# RBAC's own words; a webhook that denies a request uses others.
_NO_RIGHTS = re.compile(r'User "[^"]*" cannot ')
_NAMESPACE = re.compile(r"/namespaces/([^/?]+)/")
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


def _whole(item: Json) -> Json:
    return item


class Api:
    """One cluster. Safe to use from several threads.

    Args:
        renew: reads the credentials again.
        namespace: the namespace of all requests.
        origin: says in messages which cluster this is.
        sleep: waits before a server that was too busy is asked again.
    """

    def __init__(
        self,
        renew: Callable[[], Credentials],
        credentials: Credentials,
        *,
        namespace: str,
        origin: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._renew = renew
        self._lock = threading.Lock()
        self._login = threading.Lock()
        self._credentials = credentials
        self._open: Connections | None = None
        self.namespace = namespace
        self.origin = origin
        self._sleep = sleep

    @property
    def credentials(self) -> Credentials:
        """The credentials in use."""
        return self._credentials

    def get(self, resource: Resource, name: str) -> Json:
        """Return one object of the namespace."""
        action = f"get {resource} {name}"
        answer = self.request("GET", resource.path(self.namespace, name), action=action)
        if not _is_object(answer):
            raise self._no_api_server(action, "object")
        return answer

    def find(self, resource: Resource, name: str) -> Json | None:
        """Return one object; None if no object has this name."""
        try:
            return self.get(resource, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, resource: Resource, *, labels: str = "", fields: str = "", part: Callable[[Json], Json | None] = _whole
    ) -> tuple[list[Json], str]:
        """Return all objects of the namespace that the selectors choose, and the version to watch from.

        Args:
            part: returns the part of an object that is kept, or None, so that thousands of objects need little memory.
        """
        objects: list[Json] = []
        query = {"limit": "500", "labelSelector": labels, "fieldSelector": fields}
        while True:
            page = self.request("GET", resource.path(self.namespace), query=query, action=f"list {resource}")
            if not _is_list(page):
                raise self._no_api_server(f"list {resource}", "list")
            items, meta = page["items"] or (), page.get("metadata", {})
            # A list of built-in objects gives their kind once; a watch gives it with each object.
            kind = {"apiVersion": resource.api_version, "kind": str(page.get("kind", "")).removesuffix("List")}
            objects += filter(None, (part({**kind, **item}) for item in items))
            if not meta.get("continue"):
                return objects, str(meta.get("resourceVersion", ""))
            query["continue"] = meta["continue"]

    def create(
        self, resource: Resource, body: Json, *, dry_run: bool = False, warnings: MutableSequence[str] | None = None
    ) -> Json:
        """Create an object; the server refuses fields that it does not know instead of dropping them.

        Args:
            warnings: receives the texts of the answer's `Warning` headers, each once.
        """
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        action = f"create {resource} {body['metadata']['name']}" if "name" in body["metadata"] else f"create {resource}"
        path = resource.path(self.namespace)
        return self.request("POST", path, query=query, body=body, action=action, warnings=warnings)

    def patch(self, resource: Resource, name: str, body: Json) -> Json:
        """Change parts of an object (merge patch)."""
        path = resource.path(self.namespace, name)
        return self.request("PATCH", path, body=body, content_type=MERGE_PATCH, action=f"patch {resource} {name}")

    def delete(self, resource: Resource, name: str, *, uid: str | None = None, force: bool = False) -> None:
        """Delete an object and, in the background, all that it owns. A deleted object is no error.

        Args:
            uid: delete only this object, and not a later one of the same name.
            force: do not wait until a pod's node says that the pod has ended.
        """
        body: Json = {"propagationPolicy": "Background", **({"gracePeriodSeconds": 0} if force else {})}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", resource.path(self.namespace, name), body=body, action=f"delete {resource} {name}")
        except ApiError as error:
            if error.status != 404 and not (error.status == 409 and uid is not None):
                raise

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        action: str,
        warnings: MutableSequence[str] | None = None,
    ) -> Json:
        """Send one request and return its answer.

        Args:
            action: the action in words, for the error message.
            warnings: see `create`.

        Raises:
            ApiError: the server refused it.
            UnreachableError: there was no answer.
        """
        response = self._send(method, path, query=query, body=body, content_type=content_type, action=action)
        if warnings is not None:
            texts = _warning_texts(response.headers.get("Warning", ""))
            warnings.extend(text for text in texts if text not in warnings)
        try:
            answer: Json = json.loads(response.data or b"{}")
        except (ValueError, RecursionError) as error:
            raise self._no_api_server(action, "JSON") from error
        if not isinstance(answer, dict):
            raise self._no_api_server(action, "object")
        return answer

    def _no_api_server(self, action: str, expected: str) -> UnreachableError:
        """Return the error of an answer that no API server gives, as from another service, or a page to log in."""
        return UnreachableError(f"{self.origin}: {action}: the answer is no {expected}; is this an API server?")

    def read(self, path: str, query: Mapping[str, str], *, action: str) -> bytes:
        """Return an answer that is not JSON, unchanged."""
        return self._send("GET", path, query=query, action=action).data

    @contextmanager
    def stream(
        self, path: str, query: Mapping[str, str], *, timeout_s: float, action: str
    ) -> Iterator[Iterator[bytes]]:
        """Give the lines of an endless answer as they come; the answer has begun when this context is entered.

        Raises:
            ApiError: the server refused it.
            UnreachableError: there was no answer, or, while iterating, it was cut.
        """
        response = self._send("GET", path, query=query, read_s=timeout_s, action=action, preload=False)
        try:
            yield self._connections().lines(response, action)
        finally:
            # Not back to the pool: the rest of the answer is still on its way.
            response.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        read_s: float = READ_S,
        action: str,
        preload: bool = True,
    ) -> "BaseHTTPResponse":
        words = urlencode({name: value for name, value in (query or {}).items() if value})
        credentials, logged_in_again, busy = self._credentials, False, 0
        while True:
            headers = [("Accept", "application/json"), ("User-Agent", "pnas"), *credentials.login()]
            if body is not None:
                headers.append(("Content-Type", content_type))
            response = self._connections().request(
                method,
                f"{path}?{words}" if words else path,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                read_s=read_s,
                preload=preload,
                action=action,
            )
            if response.status == 401 and not logged_in_again:
                credentials, logged_in_again = self.log_in_again(credentials), True
            elif response.status == 429 and busy < BUSY_TRIES and _busy_s(response) <= BUSIEST_S:
                busy += 1
                self._sleep(_busy_s(response))
            else:
                break
            response.close()
        if response.status >= 400:
            refusal = self.refusal(response.status, response.data, action, path)
            if response.status == 429 and _busy_s(response) > BUSIEST_S:
                raise refusal.with_hint(f"{self.origin} is too busy: try again in {format_duration(_busy_s(response))}")
            raise refusal
        return response

    def open_socket(self, action: str) -> "socket":
        """Return a new connection to the server for another protocol than HTTP.

        Raises:
            UnreachableError: there is no connection.
        """
        return self._connections().open_socket(action)

    def _connections(self) -> "Connections":
        from launcher.kube.http import Connections  # noqa: PLC0415  # urllib3: only a request pays for it

        with self._lock:
            if self._open is None:
                self._open = Connections(self._credentials, self.origin)
            return self._open

    def log_in_again(self, refused: Credentials) -> Credentials:
        """Return other credentials than the refused ones; of several threads with the same, one reads them."""
        with self._login:
            if self._credentials is refused:
                renewed = self._renew()
                with self._lock:
                    self._credentials, self._open = renewed, None
            return self._credentials

    def refusal(self, status: int, body: bytes, action: str, path: str) -> ApiError:
        """Return the error of an answer with this status."""
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        answer = answer if isinstance(answer, dict) else {}
        message = str(answer.get("message") or body[:_SHOWN_BYTES].decode("utf-8", "replace") or f"HTTP {status}")
        causes = [
            f"{cause['field']}: {cause['message']}" if cause.get("field") else str(cause.get("message"))
            for cause in (answer.get("details") or {}).get("causes") or ()
        ]
        namespace = _NAMESPACE.search(path)
        place = f"namespace {namespace[1]}" if namespace else "the whole cluster"
        # Quotas, webhooks and a namespace that is being deleted refuse with 403, too.
        of_rights = status == 401 or (status == 403 and _NO_RIGHTS.search(message) is not None)
        if status == 401:
            text = f"{self.origin}: not logged in ({message}); log in again, or choose another --context"
        elif of_rights:
            text = f"{self.origin}: you have no right to {action} in {place}: ask its administrator for it ({message})"
        else:
            text = f"{action} in {place}: {'; '.join(causes) or message}"
        return ApiError(text, status=status, of_rights=of_rights)


def connect(access: ClusterAccess) -> Api:
    """Return the API of the cluster that `access` and the environment name. No request is sent yet.

    Raises:
        UnreachableError: there is no configuration, or it cannot be used.
        RequestError: there is no such context.
    """
    from launcher.kube.kubeconfig import find_cluster  # noqa: PLC0415  # YAML and TLS: only a cluster needs them

    try:
        cluster = find_cluster(access)
    except UnreachableError as error:
        # A configuration that cannot be used does not become better by waiting.
        error.transient = False
        raise
    return Api(
        lambda: find_cluster(access).credentials,
        cluster.credentials,
        namespace=access.namespace or cluster.namespace,
        origin=cluster.origin,
    )


def _busy_s(response: "BaseHTTPResponse") -> float:
    return busy_delay_s(response.headers.get("Retry-After"))


def _is_object(answer: object) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("metadata"), dict)


def _is_list(page: Json) -> bool:
    """Return whether an answer is a page of objects; Go writes an empty list as null too."""
    items = page.get("items", "")
    is_page = (items is None or isinstance(items, list)) and isinstance(page.get("metadata", {}), dict)
    return is_page and all(map(_is_object, items or ()))


def if_allowed(ask: Callable[[], Answer]) -> tuple[Answer | None, str]:
    """Return the answer, and why the user has no right to it: with fewer rights, a launcher sees less."""
    try:
        return ask(), ""
    except ApiError as error:
        if error.status != 403:
            raise
        return None, str(error)


def _warning_texts(header: str) -> list[str]:
    r"""Return the texts of `299 - "unknown field …"` headers (RFC 7234 5.5), in which `\"` stands for a quote."""
    return [re.sub(r"\\(.)", r"\1", text) for text in _WARNING.findall(header)]
