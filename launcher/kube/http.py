"""HTTP to the API server: the only module that imports urllib3, and itself imported with the first request."""

from collections.abc import Iterator, Mapping
from typing import Any

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import make_headers

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials

CONNECT_S = 5.0
_BLOCK = 1 << 16


class Connections:
    """The connections to one server with one login.

    Args:
        origin: says in messages which cluster this is.
    """

    def __init__(self, credentials: Credentials, origin: str) -> None:
        self._server = credentials.server
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
        headers: Mapping[str, str],
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
                headers=headers,
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

    def _no_answer(self, action: str, error: BaseException) -> UnreachableError:
        return UnreachableError(f"{self._server} ({self._origin}) cannot be reached to {action}: {_cause(error)}")


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
    if credentials.proxy:
        return ProxyManager(credentials.proxy, proxy_headers=make_headers(), **options)
    return PoolManager(**options)


def _cause(error: BaseException) -> str:
    """Return the innermost reason of urllib3's nested exceptions in words, with the next step."""
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
