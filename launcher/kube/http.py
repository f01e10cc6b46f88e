"""HTTP to the API server: the only module that imports urllib3, and itself imported with the first request."""

import base64
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from socket import socket
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from urllib3 import (
    BaseHTTPResponse,
    HTTPConnectionPool,
    HTTPHeaderDict,
    HTTPSConnectionPool,
    PoolManager,
    ProxyManager,
    Retry,
    Timeout,
)
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, InsecureRequestWarning, NewConnectionError

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials, Headers
from launcher.kube.proxy import without_password
from launcher.kube.socks import connect_through

CONNECT_S = 5.0
_BLOCK = 1 << 16


class Connections:
    """The connections to one server with one login.

    Args:
        origin: says in messages which cluster this is.
    """

    def __init__(self, credentials: Credentials, origin: str) -> None:
        self._server = credentials.server
        proxy = credentials.proxy
        self._way = "" if proxy is None else f" through the proxy {without_password(proxy)}"
        self._origin = origin
        self._pool = _pool(credentials)
        # With redirects, refusals and busy servers the API deals itself.
        self._retries = Retry(
            connect=2, read=2, redirect=0, status=0, other=0, backoff_factor=0.2, respect_retry_after_header=False
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None,
        headers: Headers,
        read_s: float,
        preload: bool,
        action: str,
    ) -> BaseHTTPResponse:
        """Return the answer, whatever its status; the body of an error status has been read.

        A GET is repeated if the connection fails; the answer to any other request may be all that was lost.

        Args:
            preload: read the whole body.
            action: the action in words, for the error message.

        Raises:
            UnreachableError: there was no answer.
        """
        try:
            response = self._pool.request(
                method,
                self._server + path,
                body=body,
                headers=HTTPHeaderDict(headers),
                timeout=Timeout(connect=CONNECT_S, read=read_s),
                retries=self._retries if method == "GET" else False,
                preload_content=preload,
            )
            if response.status >= 400:
                response.data  # noqa: B018  # reads it
        except (HTTPError, OSError) as error:
            raise self._no_answer(action, error) from error
        return response

    def lines(self, response: BaseHTTPResponse, action: str) -> Iterator[bytes]:
        """Yield the lines of a body as they come.

        Raises:
            UnreachableError: the connection was cut.
        """
        try:
            rest = b""
            for block in response.stream(_BLOCK, decode_content=True):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
        except (HTTPError, OSError) as error:
            raise self._no_answer(action, error) from error

    def open_socket(self, action: str) -> socket:
        """Return a new connection to the server for another protocol: through the proxy, with TLS, and not logged in.

        Raises:
            UnreachableError: there is no connection.
        """
        url, pool = urlsplit(self._server), self._pool.connection_from_url(self._server)
        connection = pool._new_conn()
        assert isinstance(connection, HTTPConnection)
        connection.timeout = CONNECT_S
        try:
            if pool.proxy is not None:
                port = url.port or (443 if url.scheme == "https" else 80)
                connection.set_tunnel(url.hostname or "", port, pool.proxy_headers, pool.proxy.scheme or "http")
            connection.connect()
        except (HTTPError, HTTPException, OSError) as error:
            connection.close()
            raise self._no_answer(action, error) from error
        stream: socket = connection.sock
        return stream

    def _no_answer(self, action: str, cause: BaseException) -> UnreachableError:
        reason, transient = _explain(cause)
        error = UnreachableError(f"{self._server} ({self._origin}){self._way} cannot be reached to {action}: {reason}")
        error.transient = transient
        return error


def _pool(credentials: Credentials) -> PoolManager:
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
    if not credentials.verify:
        # The user has chosen it, in the kubeconfig.
        warnings.simplefilter("ignore", InsecureRequestWarning)
    if credentials.proxy is None:
        return PoolManager(**options)
    if credentials.proxy.startswith("socks"):
        pools = PoolManager(**options)
        kinds = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
        pools.pool_classes_by_scheme = {scheme: _through(credentials.proxy, kind) for scheme, kind in kinds.items()}
        return pools
    url = urlsplit(credentials.proxy)
    headers = {}
    if url.username is not None:
        login = b"%s:%s" % (unquote_to_bytes(url.username), unquote_to_bytes(url.password or ""))
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    return ProxyManager(without_password(credentials.proxy), proxy_headers=headers, **options)


def _through(proxy: str, pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Return a kind of pool whose connections go through a SOCKS proxy."""

    def connect(connection: HTTPConnection) -> socket:
        timeout = connection.timeout
        try:
            return connect_through(
                proxy,
                connection.host,
                int(connection.port or 443),
                timeout if isinstance(timeout, float) else CONNECT_S,
            )
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error

    socks_connection = type("SocksConnection", (pool.ConnectionCls,), {"_new_conn": connect})
    return type("SocksPool", (pool,), {"ConnectionCls": socks_connection})


_OTHER_NAME = "its certificate is for another name"
_UNKNOWN_NAME = "its name is not known here; check the address and the network"
# A part of an error's text, what it means for the user, and whether another try may help.
_MEANINGS = (
    ("407 ", "the proxy wants a user and a password; write it like http://USER:PASSWORD@HOST:PORT", False),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by the CA that the configuration names", False),
    ("doesn't match", _OTHER_NAME, False),
    ("Hostname mismatch", _OTHER_NAME, False),
    ("refused", "the connection was refused; is the cluster up?", True),
    ("Name or service not known", _UNKNOWN_NAME, True),
    ("name resolution", _UNKNOWN_NAME, True),
    ("unreachable", "there is no way to it from here; check the network", True),
    ("timed out", "it did not answer in time; is the cluster up?", True),
)


def _explain(error: BaseException) -> tuple[str, bool]:
    """Return the innermost reason of urllib3's nested exceptions in words, and whether another try may help."""
    reasons = [error]
    while (inner := getattr(reasons[-1], "reason", None) or reasons[-1].__cause__) and isinstance(inner, BaseException):
        reasons.append(inner)
    text = " ".join(" ".join(str(reason) for reason in reasons).split())
    for sign, meaning, transient in _MEANINGS:
        if sign in text:
            return meaning, transient
    return " ".join(str(reasons[-1]).split()) or type(error).__name__, True
