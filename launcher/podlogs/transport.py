"""One GET after the other to an API server, each answer read as it comes, by libcurl.

The API server sends each log line as an HTTP chunk of its own, and any client that handles chunks in Python spends
its time on that. Here libcurl takes them apart and appends them to a list, which is joined whenever the socket has
been emptied. Nothing is read while nobody asks for more, so a slow reader is felt by the server; and waiting ends at
once when the stop is set. One transport belongs to one thread.
"""

from __future__ import annotations

import json
import math
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from launcher.kube.place import Credentials
from launcher.kube.retry import retry_after_s
from launcher.podlogs.errors import (
    ConnectionCutError,
    LogRefusedError,
    NotConnectedError,
    PodLogError,
    ReadStoppedError,
    SilentError,
    UntrustedError,
)
from launcher.podlogs.stop import Stop

_BUFFER = 1 << 18
_MESSAGE_LIMIT = 1 << 16
_NOT_REACHED = ("COULDNT_RESOLVE_PROXY", "COULDNT_RESOLVE_HOST", "COULDNT_CONNECT", "OPERATION_TIMEDOUT")
# E_SSL_CONNECT_ERROR is not among them: a handshake that is cut looks the same.
_UNTRUSTED = ("PEER_FAILED_VERIFICATION", "SSL_CACERT_BADFILE", "SSL_CERTPROBLEM", "SSL_ISSUER_ERROR", "SSL_CIPHER")


class Transport:
    """A connection to the API server that is kept from one request to the next.

    Args:
        connect_s: how long a connection may take.
        idle_s: how long an answer may be silent. Balancers drop silent connections without a word, so a silence is
            no error, but a reason to ask again.
    """

    def __init__(self, credentials: Credentials, stop: Stop, *, connect_s: float = 10, idle_s: float = 60) -> None:
        self._stop = stop
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._log_in(credentials)

    def use(self, credentials: Credentials) -> None:
        """Log in with these from now on, over another connection: a certificate is shown once on each."""
        self.close()
        self._log_in(credentials)

    def _log_in(self, credentials: Credentials) -> None:
        import pycurl  # noqa: PLC0415  # only a command that reads a log pays for it

        self._credentials = credentials
        self._multi: Any = pycurl.CurlMulti()
        self._curl: Any = pycurl.Curl()
        for option, value in _options(credentials, self._connect_s).items():
            self._curl.setopt(getattr(pycurl, option), value)

    @contextmanager
    def get(self, path: str, query: Mapping[str, str]) -> Iterator[Answer]:
        """The answer to a GET, as long as the context lasts.

        Raises:
            ReadStoppedError: the stop is set.
            NotConnectedError, UntrustedError: there is no connection.
            LogRefusedError: the answer is not 200.
        """
        token = self._credentials.token()
        headers = [] if token is None else [f"Authorization: Bearer {token}"]
        if self._credentials.tls_server_name is not None:
            headers.append(f"Host: {urlsplit(self._credentials.server).netloc}")
        self._curl.setopt(self._curl.URL, self._url(path, query))
        self._curl.setopt(self._curl.HTTPHEADER, headers)
        answer = Answer(self._multi, self._curl, self._credentials, self._stop, self._idle_s)
        self._multi.add_handle(self._curl)
        try:
            yield answer
        finally:
            self._multi.remove_handle(self._curl)

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        """The URL, under the name that the certificate must have; CONNECT_TO leads it to the server."""
        server = urlsplit(self._credentials.server)
        if self._credentials.tls_server_name is not None:
            server = server._replace(netloc=f"{self._credentials.tls_server_name}:{server.port or 443}")
        return f"{server.geturl().rstrip('/')}{quote(path)}{'?' if query else ''}{urlencode(query)}"

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        self._multi.close()
        self._curl.close()


class Answer:
    """What the server sends, in blocks as they come.

    The kubelet sends its headers with the first line of the log, so nothing is known of an answer before that.
    """

    def __init__(self, multi: Any, curl: Any, credentials: Credentials, stop: Stop, idle_s: float) -> None:
        self._multi = multi
        self._curl = curl
        self._credentials = credentials
        self._stop = stop
        self._idle_s = idle_s
        self._parts: list[bytes] = []
        self._headers: list[bytes] = []
        self._ended = False
        self._heard = 0.0
        curl.setopt(curl.WRITEFUNCTION, self._parts.append)
        curl.setopt(curl.HEADERFUNCTION, self._headers.append)

    def blocks(self, tick_s: float = math.inf) -> Iterator[bytes]:
        """What comes, until the answer's end; an empty block whenever nothing came for `tick_s`.

        Raises:
            ReadStoppedError: the stop is set.
            NotConnectedError, UntrustedError: there was no connection.
            LogRefusedError: the answer is not 200.
            ConnectionCutError: the answer was cut, or (SilentError) nothing came for `idle_s`.
        """
        while not self._ended:
            data = self._next(tick_s)
            if (data or self._ended) and self._curl.getinfo(self._curl.RESPONSE_CODE) != 200:
                raise self._refused(data)
            if data or not self._ended:
                yield data

    def _next(self, tick_s: float) -> bytes:
        """What has come; nothing at the end, or if nothing came in time."""
        asked = time.monotonic()
        self._heard = self._heard or asked
        while not self._parts:
            if self._stop.is_set():
                raise ReadStoppedError("stopped")
            _, active = self._multi.perform()
            if self._parts:
                break
            now = time.monotonic()
            if not active:
                self._ended = True
                self._check()
                return b""
            if now > self._heard + self._idle_s:
                raise SilentError(f"{self._credentials.server}: nothing came for {self._idle_s:g} s")
            if now > asked + tick_s:
                return b""
            self._wait(min(self._heard + self._idle_s, asked + tick_s) - now)
        # What lies unread while nobody asks for it is no silence.
        self._heard = 0
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def _wait(self, seconds: float) -> None:
        """Until there is something to read or write, libcurl's own time is up, or the stop is set."""
        reading, writing, _ = self._multi.fdset()
        poller = select.poll()
        poller.register(self._stop, select.POLLIN)
        for descriptor in {*reading, *writing}:
            events = (select.POLLIN if descriptor in reading else 0) | (select.POLLOUT if descriptor in writing else 0)
            poller.register(descriptor, events)
        # Without a socket libcurl is resolving a name, and says so only when it is asked.
        own_ms = self._multi.timeout() if reading or writing else 10
        milliseconds = max(seconds, 0) * 1000
        poller.poll(milliseconds if own_ms < 0 else min(milliseconds, own_ms))

    def _check(self) -> None:
        """Raise what libcurl says of the end."""
        _, _, failed = self._multi.info_read()
        for _, code, message in failed:
            raise _error(code, f"{self._credentials.server}: {message}")

    def _refused(self, data: bytes) -> PodLogError:
        while len(data) < _MESSAGE_LIMIT and not self._ended:
            data += self._next(math.inf)
        return LogRefusedError(
            self._curl.getinfo(self._curl.RESPONSE_CODE),
            _message(data) or "no reason given",
            retry_after_s(self._header("retry-after")),
        )

    def _header(self, name: str) -> str | None:
        for line in reversed(self._headers):
            key, _, value = line.decode("latin-1").partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return None


def _options(credentials: Credentials, connect_s: float) -> dict[str, object]:
    """The options of every request."""
    import pycurl  # noqa: PLC0415  # see Transport

    options: dict[str, object] = {
        "NOSIGNAL": 1,
        # A stream of small parts is cheaper there than with HTTP/2's framing and windows.
        "HTTP_VERSION": pycurl.CURL_HTTP_VERSION_1_1,
        "BUFFERSIZE": _BUFFER,
        "CONNECTTIMEOUT_MS": int(connect_s * 1000),
        "TCP_KEEPALIVE": 1,
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 15,
        # Both empty: whoever made `credentials` has looked at the environment already.
        "PROXY": credentials.proxy or "",
        "NOPROXY": "",
        "SSL_VERIFYPEER": int(credentials.verify),
        "SSL_VERIFYHOST": 2 if credentials.verify else 0,
    }
    files = {"CAINFO": credentials.ca_file, "SSLCERT": credentials.client_cert, "SSLKEY": credentials.client_key}
    options |= {name: value for name, value in files.items() if value is not None}
    if credentials.tls_server_name is not None:
        address = urlsplit(credentials.server)
        port = address.port or 443
        # Its host in brackets where it is an IPv6 address.
        host = address.netloc.rpartition("@")[2].removesuffix(f":{address.port}")
        options["CONNECT_TO"] = [f"{credentials.tls_server_name}:{port}:{host}:{port}"]
    return options


def _error(code: int, message: str) -> PodLogError:
    import pycurl  # noqa: PLC0415  # see Transport

    def among(names: Sequence[str]) -> bool:
        return code in [getattr(pycurl, f"E_{name}") for name in names]

    if among(_NOT_REACHED):
        return NotConnectedError(message)
    return UntrustedError(message) if among(_UNTRUSTED) else ConnectionCutError(message)


def _message(body: bytes) -> str:
    """What a Status object says, or else the body's first line."""
    try:
        status = json.loads(body)
    except ValueError:
        return (body.decode("utf-8", "replace").strip().splitlines() or [""])[0][:300]
    message = status.get("message") if isinstance(status, dict) else None
    return str(message or "")
