"""Requests to the API server: JSON in, JSON out, and every failure one typed error that names what to do.

A GET is tried again when the connection fails; anything that changes the cluster never is, because its answer may be
all that was lost. A server that is too busy (429) has done nothing, and is asked again when it wants to be. A refused
login is answered by reading the credentials anew, once.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from launcher.errors import ExitCode, LauncherError, UnreachableError
from launcher.kube.resources import Resource
from launcher.kube.retry import BUSY_TRIES, busy_delay_s, is_transient_status

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

Json = dict[str, Any]

CONNECT_S = 5.0
READ_S = 30.0
MERGE_PATCH = "application/merge-patch+json"
TAKEN = 409
"""The status that answers a creation under a name that is not free."""
_NOT_TOLD = 512
# How RBAC says it; a webhook that denies has words of its own.
_NO_RIGHTS = re.compile(r'User "[^"]*" cannot ')
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Credentials:
    """How the API server is reached, and as whom. Files are paths; `token` is asked before each request."""

    server: str
    ca_file: str | None
    client_cert: str | None
    client_key: str | None
    token: Callable[[], str | None]
    proxy: str | None
    verify: bool
    tls_server_name: str | None


class ApiError(LauncherError):
    """The API server refused a request.

    Attributes:
        status: the HTTP status.
        of_rights: we are not known there, or not allowed to; otherwise 403 is a refusal of what was asked for.
    """

    exit_code = ExitCode.UNREACHABLE

    def __init__(self, message: str, *, status: int, of_rights: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.of_rights = of_rights
        self.transient = is_transient_status(status)


class Api:
    """One cluster. Safe to use from several threads.

    Args:
        renew: reads the credentials anew.
        namespace: where jobs are.
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
        self._pool: PoolManager | None = None
        self.namespace = namespace
        self.origin = origin
        self._sleep = sleep

    @property
    def credentials(self) -> Credentials:
        """Those in use now."""
        return self._credentials

    def get(self, resource: Resource, name: str) -> Json:
        """One object of the namespace."""
        return self.request("GET", resource.path(self.namespace, name), what=f"get {resource} {name}")

    def find(self, resource: Resource, name: str) -> Json | None:
        """One object, or None if there is none of that name."""
        try:
            return self.get(resource, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, resource: Resource, *, labels: str = "", fields: str = "") -> tuple[list[Json], str]:
        """All objects of the namespace that the selectors choose, and the version to watch from."""
        found: list[Json] = []
        query = {"limit": "500", "labelSelector": labels, "fieldSelector": fields}
        while True:
            page = self.request("GET", resource.path(self.namespace), query=query, what=f"list {resource}")
            # A list of built-in objects says once of what kind they are; a watch says it of each.
            kind = {"apiVersion": resource.api_version, "kind": str(page.get("kind", "")).removesuffix("List")}
            found += [{**kind, **item} for item in page.get("items", [])]
            meta = page.get("metadata", {})
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion", ""))
            query["continue"] = meta["continue"]

    def create(
        self, resource: Resource, body: Json, *, dry_run: bool = False, warnings: MutableSequence[str] | None = None
    ) -> Json:
        """Create an object; the server refuses fields that it does not know instead of dropping them.

        Args:
            warnings: receives the texts of the answer's `Warning` headers, each once.
        """
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        what = f"create {resource} {body['metadata']['name']}" if "name" in body["metadata"] else f"create {resource}"
        path = resource.path(self.namespace)
        return self.request("POST", path, query=query, body=body, what=what, warnings=warnings)

    def patch(self, resource: Resource, name: str, body: Json) -> Json:
        """Change parts of an object (merge patch)."""
        path = resource.path(self.namespace, name)
        return self.request("PATCH", path, body=body, content_type=MERGE_PATCH, what=f"patch {resource} {name}")

    def delete(self, resource: Resource, name: str, *, uid: str | None = None) -> None:
        """Delete an object and, in the background, what it owns; one that is gone already is no error.

        Args:
            uid: delete this very object, not a later one of the same name: that is gone already, too.
        """
        body: Json = {"propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", resource.path(self.namespace, name), body=body, what=f"delete {resource} {name}")
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
        what: str,
        warnings: MutableSequence[str] | None = None,
    ) -> Json:
        """Send one request and read its answer.

        Args:
            what: the deed in words, for the error.
            warnings: see `create`.

        Raises:
            ApiError: the server refused it.
            UnreachableError: there was no answer.
        """
        response = self._send(method, path, query=query, body=body, content_type=content_type, what=what)
        if warnings is not None:
            texts = _warnings(response.headers.get("Warning", ""))
            warnings.extend(text for text in texts if text not in warnings)
        try:
            answer: Json = json.loads(response.data or b"{}")
        except ValueError as error:
            raise UnreachableError(f"{self.origin}: {what}: the answer is no JSON; is this an API server?") from error
        return answer

    def read(self, path: str, query: Mapping[str, str], *, what: str) -> bytes:
        """An answer that is not JSON, as it is."""
        return self._send("GET", path, query=query, what=what).data

    @contextmanager
    def stream(self, path: str, query: Mapping[str, str], *, timeout_s: float, what: str) -> Iterator[Iterator[bytes]]:
        """The lines of an answer that does not end by itself, as they come; the answer has begun when this is entered.

        Raises:
            ApiError: the server refused it.
            UnreachableError: there was no answer, or, while iterating, it broke off.
        """
        response = self._send("GET", path, query=query, read_s=timeout_s, what=what, preload=False)
        try:
            yield self._lines(response, what)
        finally:
            # Not back to the pool: the rest of the answer is still on its way.
            response.close()

    def _lines(self, response: "BaseHTTPResponse", what: str) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415  # only who asks a cluster pays

        try:
            rest = b""
            for block in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
        except (HTTPError, OSError) as error:
            raise self._no_answer(what, error) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        read_s: float = READ_S,
        what: str,
        preload: bool = True,
    ) -> "BaseHTTPResponse":
        """The answer, if it is no refusal."""
        from urllib3 import Retry, Timeout  # noqa: PLC0415  # only who asks a cluster pays
        from urllib3.exceptions import HTTPError  # noqa: PLC0415  # as above

        words = urlencode({name: value for name, value in (query or {}).items() if value})
        again = Retry(
            connect=2, read=2, redirect=0, status=0, other=0, backoff_factor=0.2, respect_retry_after_header=False
        )
        current, logged_in_again, busy = self._credentials, False, 0
        while True:
            headers = {"Accept": "application/json", "User-Agent": "pnas"}
            if body is not None:
                headers["Content-Type"] = content_type
            if token := current.token():
                headers["Authorization"] = f"Bearer {token}"
            try:
                response = self._connections().request(
                    method,
                    f"{current.server}{path}?{words}" if words else current.server + path,
                    body=None if body is None else json.dumps(body).encode(),
                    headers=headers,
                    timeout=Timeout(connect=CONNECT_S, read=read_s),
                    retries=again if method == "GET" else False,
                    preload_content=preload,
                )
                refusal = response.data if response.status >= 400 else b""
            except (HTTPError, OSError) as error:
                raise self._no_answer(what, error) from error
            if response.status == 401 and not logged_in_again:
                current, logged_in_again = self.log_in_again(current), True
            elif response.status == 429 and busy < BUSY_TRIES:
                busy += 1
                self._sleep(busy_delay_s(response.headers.get("Retry-After")))
            else:
                break
            response.close()
        if response.status >= 400:
            raise self._refusal(response.status, refusal, what)
        return response

    def _connections(self) -> "PoolManager":
        with self._lock:
            if self._pool is None:
                self._pool = _pool(self._credentials)
            return self._pool

    def log_in_again(self, refused: Credentials) -> Credentials:
        """Other credentials than those that were refused; of many threads that come with the same, one reads them."""
        with self._login:
            if self._credentials is refused:
                renewed = self._renew()
                with self._lock:
                    self._credentials, self._pool = renewed, None
            return self._credentials

    def _refusal(self, status: int, body: bytes, what: str) -> ApiError:
        try:
            told = json.loads(body)
        except ValueError:
            told = {}
        told = told if isinstance(told, dict) else {}
        message = str(told.get("message") or body[:_NOT_TOLD].decode("utf-8", "replace") or f"HTTP {status}")
        causes = [
            f"{cause['field']}: {cause['message']}" if cause.get("field") else str(cause.get("message"))
            for cause in (told.get("details") or {}).get("causes") or ()
        ]
        where = f"namespace {self.namespace}"
        # Quotas, webhooks and a namespace that is going refuse with 403, too.
        of_rights = status == 401 or (status == 403 and _NO_RIGHTS.search(message) is not None)
        if status == 401:
            text = f"{self.origin}: not logged in ({message}); log in again, or choose another --context"
        elif of_rights:
            text = f"{self.origin}: you may not {what} in {where}: ask its administrator for that right ({message})"
        else:
            text = f"{what} in {where}: {'; '.join(causes) or message}"
        return ApiError(text, status=status, of_rights=of_rights)

    def _no_answer(self, what: str, error: BaseException) -> UnreachableError:
        return UnreachableError(
            f"{self._credentials.server} ({self.origin}) cannot be reached to {what}: {_cause(error)}"
        )


def _pool(credentials: Credentials) -> "PoolManager":
    from urllib3 import PoolManager, ProxyManager  # noqa: PLC0415  # only who asks a cluster pays
    from urllib3.util import make_headers  # noqa: PLC0415  # as above

    options: dict[str, Any] = {
        "num_pools": 4,
        "maxsize": 8,
        "cert_reqs": "CERT_REQUIRED" if credentials.verify else "CERT_NONE",
        "ca_certs": credentials.ca_file,
        "cert_file": credentials.client_cert,
        "key_file": credentials.client_key,
    }
    if credentials.tls_server_name:
        options["server_hostname"] = options["assert_hostname"] = credentials.tls_server_name
    if credentials.proxy:
        return ProxyManager(credentials.proxy, proxy_headers=make_headers(), **options)
    return PoolManager(**options)


def _warnings(header: str) -> list[str]:
    """The texts of `299 - "unknown field …"` headers (RFC 7234 5.5), in which quotes are escaped by backslashes."""
    return [re.sub(r"\\(.)", r"\1", text) for text in _WARNING.findall(header)]


def _cause(error: BaseException) -> str:
    """What is at the bottom of urllib3's nested exceptions, with the next step."""
    reasons = [error]
    while (inner := getattr(reasons[-1], "reason", None) or reasons[-1].__cause__) and isinstance(inner, BaseException):
        reasons.append(inner)
    text = " ".join(" ".join(str(reason) for reason in reasons).split())
    for sign, meaning in (
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by the CA that the configuration names"),
        ("doesn't match", "its certificate is for another name"),
        ("Hostname mismatch", "its certificate is for another name"),
        ("refused", "the connection was refused; is the cluster up?"),
        ("Name or service not known", "its name is not known here; check the address and the network"),
        ("name resolution", "its name is not known here; check the address and the network"),
        ("unreachable", "there is no way to it from here; check the network"),
        ("timed out", "it did not answer in time; is the cluster up?"),
    ):
        if sign in text:
            return meaning
    return " ".join(str(reasons[-1]).split()) or type(error).__name__
