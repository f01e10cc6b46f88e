"""A GET whose answer comes piece by piece, for as long as the server sends: a log that is followed.

libcurl reads it, because the API server sends each line as an HTTP chunk of its own, and taking chunks apart in Python
costs four times the CPU. Nothing is read ahead of the consumer: who does not ask for more holds the sender up.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from launcher.errors import UnreachableError
from launcher.kube.api import CONNECT_S, Credentials

if TYPE_CHECKING:
    import pycurl

_BUFFER = 256 << 10
_POLL_S = 0.25


class RefusedStreamError(Exception):
    """The server answered with an error. `body` is what it sent with it."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body


def stream(
    credentials: Credentials,
    path: str,
    query: Mapping[str, str],
    *,
    stopped: Callable[[], bool],
    idle_s: float,
) -> Iterator[bytes]:
    """What the server sends, as it comes; ends with the answer, or soon after `stopped`.

    Args:
        idle_s: a connection that is silent for so long is taken for dead.

    Raises:
        RefusedStreamError: the answer is an error.
        UnreachableError: there was no answer, or it broke off.
    """
    import pycurl  # noqa: PLC0415  # only who reads a log pays

    parts: list[bytes] = []
    handle = _handle(credentials, f"{credentials.server}{path}?{urlencode(query)}", parts)
    multi = pycurl.CurlMulti()
    multi.add_handle(handle)
    heard = time.monotonic()
    refused = b""
    try:
        running = 1
        while running and not stopped():
            _, running = multi.perform()
            if parts:
                heard = time.monotonic()
                data = b"".join(parts)
                parts.clear()
                if handle.getinfo(pycurl.RESPONSE_CODE) >= 400:
                    refused += data
                else:
                    yield data
            elif running:
                multi.select(_POLL_S)
                if time.monotonic() - heard > idle_s:
                    raise UnreachableError(f"{credentials.server}: the connection was silent for {idle_s:g} s")
        if running:
            return
        _, _, failed = multi.info_read()
        if failed:
            raise UnreachableError(f"{credentials.server}: {failed[0][2]}")
        if (status := handle.getinfo(pycurl.RESPONSE_CODE)) >= 400:
            raise RefusedStreamError(status, refused)
    finally:
        multi.remove_handle(handle)
        handle.close()
        multi.close()


def _handle(credentials: Credentials, url: str, parts: list[bytes]) -> "pycurl.Curl":
    import pycurl  # noqa: PLC0415  # see above

    headers = ["User-Agent: pnas"]
    if token := credentials.token():
        headers.append(f"Authorization: Bearer {token}")
    handle = pycurl.Curl()
    options = {
        pycurl.URL: url,
        pycurl.HTTPHEADER: headers,
        pycurl.WRITEFUNCTION: parts.append,
        pycurl.BUFFERSIZE: _BUFFER,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.CONNECTTIMEOUT_MS: round(CONNECT_S * 1000),
        pycurl.TCP_KEEPALIVE: 1,
        pycurl.NOSIGNAL: 1,
        pycurl.PROXY: credentials.proxy or "",
        pycurl.SSL_VERIFYPEER: int(credentials.verify),
        pycurl.SSL_VERIFYHOST: 2 if credentials.verify else 0,
    }
    files = {
        pycurl.CAINFO: credentials.ca_file,
        pycurl.SSLCERT: credentials.client_cert,
        pycurl.SSLKEY: credentials.client_key,
    }
    for option, value in {**options, **{name: file for name, file in files.items() if file}}.items():
        handle.setopt(option, value)
    if credentials.tls_server_name:
        _rename(handle, url, credentials.tls_server_name)
    return handle


def _rename(handle: "pycurl.Curl", url: str, name: str) -> None:
    """Connect to the URL's host, but expect the certificate of `name`."""
    import pycurl  # noqa: PLC0415  # see above
    from urllib3.util import parse_url  # noqa: PLC0415

    parsed = parse_url(url)
    port = parsed.port or 443
    handle.setopt(pycurl.URL, url.replace(f"//{parsed.netloc}", f"//{name}:{port}", 1))
    handle.setopt(pycurl.CONNECT_TO, [f"{name}:{port}:{parsed.host}:{port}"])
