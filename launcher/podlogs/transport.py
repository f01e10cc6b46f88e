"""GET requests to an API server, one after the other, whose answers are read by libcurl as they come.

`launcher.podlogs` says why it is libcurl. libcurl takes the HTTP chunks apart and appends them to a list, which is
joined whenever the socket is empty. Nothing is read while the caller asks for nothing, so the server feels a slow
reader; and a wait ends at once when the stop signal is set. One transport belongs to one thread.
"""

from __future__ import annotations

import json
import math
import os
import select
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pycurl

from launcher.kube.access import Credentials
from launcher.kube.retry import retry_after_s
from launcher.podlogs.errors import (
    ConnectionCutError,
    LogRefusedError,
    NotConnectedError,
    PodLogError,
    ReadStoppedError,
    SilentError,
    Timing,
    UntrustedError,
)

_BUFFER = 1 << 18
_MESSAGE_LIMIT = 1 << 16
_NOT_CONNECTED = {
    pycurl.E_COULDNT_RESOLVE_PROXY,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_OPERATION_TIMEDOUT,
}
# Without E_SSL_CONNECT_ERROR: a handshake that is cut looks the same.
_UNTRUSTED = {
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CACERT_BADFILE,
    pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_ISSUER_ERROR,
    pycurl.E_SSL_CIPHER,
}


class StopSignal:
    """Wakes threads that wait for a time, and threads that wait for a socket. Set once; safe to use from any thread.

    `threading.Event` wakes only the former, and a user who pressed Ctrl-C does not want to wait for the latter.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._read, write = os.pipe()
        self._write = [write]
        weakref.finalize(self, _close, self._read, self._write)

    def set(self) -> None:
        """Wake all threads."""
        with self._lock:
            if not self._event.is_set():
                self._event.set()
                # A pipe without a writer is readable for all, and stays so.
                os.close(self._write.pop())

    def is_set(self) -> bool:
        """Return whether the signal was set."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep until the time is over or the signal is set; return whether it was set."""
        return self._event.wait(seconds)

    def fileno(self) -> int:
        """Return a descriptor that is readable once the signal is set. Do not read from it."""
        return self._read


def _close(read: int, write: list[int]) -> None:
    for descriptor in (read, *write):
        os.close(descriptor)


class Transport:
    """A connection to the API server that is kept from one request to the next."""

    def __init__(
        self,
        credentials: Credentials,
        stop: StopSignal,
        timing: Timing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stop = stop
        self._timing = timing
        self._clock = clock
        self._log_in(credentials)

    def use(self, credentials: Credentials) -> None:
        """Log in with other credentials, over a new connection: each shows its certificate only once."""
        self.close()
        self._log_in(credentials)

    def _log_in(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._multi: Any = pycurl.CurlMulti()
        self._curl: Any = pycurl.Curl()
        for option, value in _options(credentials, self._timing.connect_s).items():
            self._curl.setopt(option, value)

    @contextmanager
    def get(self, path: str, query: Mapping[str, str], *, idle_s: float | None = None) -> Iterator[LogResponse]:
        """Send a GET and give its answer for as long as the context lasts.

        Args:
            idle_s: the silence that ends the answer; as in the timing if None.

        Raises:
            ReadStoppedError: the stop signal is set.
            NotConnectedError, UntrustedError: there is no connection.
            LogRefusedError: the answer is not 200.
        """
        headers = [f"{name}: {value}" for name, value in self._credentials.login()]
        if self._credentials.tls_server_name is not None:
            headers.append(f"Host: {urlsplit(self._credentials.server).netloc}")
        self._curl.setopt(self._curl.URL, self._url(path, query))
        self._curl.setopt(self._curl.HTTPHEADER, headers)
        server = self._credentials.server
        idle_s = self._timing.idle_s if idle_s is None else idle_s
        response = LogResponse(self._multi, self._curl, server, self._stop, idle_s, self._clock)
        self._multi.add_handle(self._curl)
        try:
            yield response
        finally:
            self._multi.remove_handle(self._curl)

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        """Return the URL with the name that the certificate must have; CONNECT_TO directs it to the server."""
        server = urlsplit(self._credentials.server)
        if self._credentials.tls_server_name is not None:
            server = server._replace(netloc=f"{self._credentials.tls_server_name}:{server.port or 443}")
        return f"{server.geturl().rstrip('/')}{quote(path)}{'?' if query else ''}{urlencode(query)}"

    def close(self) -> None:
        """Close the connection, whatever its state."""
        self._multi.close()
        self._curl.close()


@dataclass(eq=False)
class LogResponse:
    """A server's answer, in blocks as they come.

    The kubelet sends its headers with the first line of the log, so an answer's status is unknown before that.
    """

    multi: Any
    curl: Any
    server: str
    stop: StopSignal
    idle_s: float
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._parts: list[bytes] = []
        self._headers: list[bytes] = []
        self._ended = False
        self._last_data_at = 0.0
        self.curl.setopt(self.curl.WRITEFUNCTION, self._parts.append)
        self.curl.setopt(self.curl.HEADERFUNCTION, self._headers.append)

    def blocks(self, tick_s: float = math.inf) -> Iterator[bytes]:
        """Yield the blocks of the answer until its end, and an empty block whenever nothing came for `tick_s`.

        Raises:
            ReadStoppedError: the stop signal is set.
            NotConnectedError, UntrustedError: there was no connection.
            LogRefusedError: the answer is not 200.
            ConnectionCutError: the answer was cut, or (SilentError) nothing came for `idle_s`.
        """
        while not self._ended:
            data = self._next(tick_s)
            if (data or self._ended) and self.curl.getinfo(self.curl.RESPONSE_CODE) != 200:
                raise self._refusal(data)
            if data or not self._ended:
                yield data

    def _next(self, tick_s: float) -> bytes:
        """Return the received data; nothing at the end, or if nothing came for `tick_s`."""
        began = self.clock()
        self._last_data_at = self._last_data_at or began
        while not self._parts:
            if self.stop.is_set():
                raise ReadStoppedError("stopped")
            _, active = self.multi.perform()
            if self._parts:
                break
            now = self.clock()
            if not active:
                self._ended = True
                self._raise_failure()
                return b""
            if now > self._last_data_at + self.idle_s:
                raise SilentError(f"{self.server}: nothing came for {self.idle_s:g} s")
            if now > began + tick_s:
                return b""
            self._wait(min(self._last_data_at + self.idle_s, began + tick_s) - now)
        # Time during which the caller did not read does not count as silence.
        self._last_data_at = 0
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def _wait(self, seconds: float) -> None:
        """Wait until a socket is ready, libcurl wants to be called, the stop signal is set, or the time is over."""
        reading, writing, _ = self.multi.fdset()
        poller = select.poll()
        poller.register(self.stop, select.POLLIN)
        for descriptor in {*reading, *writing}:
            events = (select.POLLIN if descriptor in reading else 0) | (select.POLLOUT if descriptor in writing else 0)
            poller.register(descriptor, events)
        # Without a socket libcurl is resolving a name, and gives the result only when it is called.
        own_ms = self.multi.timeout() if reading or writing else 10
        milliseconds = max(seconds, 0) * 1000
        poller.poll(milliseconds if own_ms < 0 else min(milliseconds, own_ms))

    def _raise_failure(self) -> None:
        """Raise the error with which libcurl ended the answer, if there is one."""
        _, _, failures = self.multi.info_read()
        for _, code, message in failures:
            raise _error(code, f"{self.server}: {message}")

    def _refusal(self, data: bytes) -> LogRefusedError:
        while len(data) < _MESSAGE_LIMIT and not self._ended:
            data += self._next(math.inf)
        status = self.curl.getinfo(self.curl.RESPONSE_CODE)
        return LogRefusedError(status, _message(data) or "no reason given", retry_after_s(self._header("retry-after")))

    def _header(self, name: str) -> str | None:
        for line in reversed(self._headers):
            key, _, value = line.decode("latin-1").partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return None


def _options(credentials: Credentials, connect_s: float) -> dict[int, object]:
    """Return the options of every request."""
    options: dict[int, object] = {
        pycurl.NOSIGNAL: 1,
        # For a stream of small parts it is cheaper than HTTP/2 with its frames and windows.
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.BUFFERSIZE: _BUFFER,
        pycurl.CONNECTTIMEOUT_MS: int(connect_s * 1000),
        pycurl.TCP_KEEPALIVE: 1,
        pycurl.TCP_KEEPIDLE: 30,
        pycurl.TCP_KEEPINTVL: 15,
        # Both are set, so that libcurl ignores the environment: `credentials` already takes it into account.
        # A SOCKS proxy resolves the server's name, as kubectl has it.
        pycurl.PROXY: (credentials.proxy or "").replace("socks5:", "socks5h:"),
        pycurl.NOPROXY: "",
        # A resumed session would keep the identity of a client certificate that was renewed on the disk since.
        pycurl.SSL_SESSIONID_CACHE: 0,
        pycurl.SSL_VERIFYPEER: int(credentials.verify),
        pycurl.SSL_VERIFYHOST: 2 if credentials.verify else 0,
    }
    files = {
        pycurl.CAINFO: credentials.ca_file,
        pycurl.SSLCERT: credentials.client_cert,
        pycurl.SSLKEY: credentials.client_key,
    }
    if credentials.ca_file is None:
        # The system's authorities, as for all other requests: a wheel of pycurl can look for them at other places.
        paths = ssl.get_default_verify_paths()
        files |= {pycurl.CAINFO: paths.cafile, pycurl.CAPATH: paths.capath}
    if credentials.proxy is not None and credentials.proxy.startswith("https:"):
        # kubectl trusts the same authorities for the proxy as for the server.
        files |= {pycurl.PROXY_CAINFO: files[pycurl.CAINFO]}
        options |= {pycurl.PROXY_SSL_VERIFYPEER: int(credentials.verify)}
        options |= {pycurl.PROXY_SSL_VERIFYHOST: 2 if credentials.verify else 0}
    options |= {option: file for option, file in files.items() if file is not None}
    if credentials.tls_server_name is not None:
        address = urlsplit(credentials.server)
        port = address.port or 443
        # An IPv6 address keeps its brackets.
        host = address.netloc.rpartition("@")[2].removesuffix(f":{address.port}")
        options[pycurl.CONNECT_TO] = [f"{credentials.tls_server_name}:{port}:{host}:{port}"]
    return options


def _error(code: int, message: str) -> PodLogError:
    if code in _NOT_CONNECTED:
        return NotConnectedError(message)
    return UntrustedError(message) if code in _UNTRUSTED else ConnectionCutError(message)


def _message(body: bytes) -> str:
    """Return the message of a Status object, or else the body's first line."""
    try:
        status = json.loads(body)
    except ValueError:
        return (body.decode("utf-8", "replace").strip().splitlines() or [""])[0][:300]
    message = status.get("message") if isinstance(status, dict) else None
    return str(message or "")
