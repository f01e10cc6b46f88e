"""Run a program in a container, with its standard streams, as `kubectl exec` does: WebSocket, v4.channel.k8s.io.

Each message begins with a byte that names its stream. Nothing tells the program that its standard input has ended, so
it must end by itself, or with the connection.
"""

import base64
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from urllib.parse import unquote_to_bytes, urlencode, urlsplit

import websocket

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials
from launcher.kube.api import Api
from launcher.kube.resources import PODS
from launcher.kube.socks import connect_through

_CONNECT_S = 10.0
SILENT_S = 120.0
"""Seconds without a byte after which the connection counts as cut: a program can hash a large file for that long."""
_IN, _OUT, _ERROR, _STATUS = 0, 1, 2, 3
_SHOWN_BYTES = 300


class ExecStream:
    """The streams of a program in a container. `launcher.jobs.Channel` says what each method promises."""

    def __init__(self, connection: websocket.WebSocket, source: str) -> None:
        self.source = source
        self._connection = connection
        self._words = b""

    def send(self, data: bytes) -> None:
        """Write to the program's standard input."""
        try:
            self._connection.send_binary(bytes((_IN,)) + data)
        except (OSError, websocket.WebSocketException) as error:
            raise self._cut(error) from error

    def receive(self) -> bytes:
        """Return the next bytes of standard output; nothing at its end."""
        while True:
            try:
                code, data = self._connection.recv_data()
            except (OSError, websocket.WebSocketException) as error:
                raise self._cut(error) from error
            if code == websocket.ABNF.OPCODE_CLOSE:
                return b""
            stream, rest = data[:1], data[1:]
            if stream == bytes((_OUT,)) and rest:
                return bytes(rest)
            if stream == bytes((_ERROR,)):
                self._words = (self._words + rest)[-_SHOWN_BYTES:]
            if stream == bytes((_STATUS,)) and (reason := _failure(rest)):
                raise self._cut(reason + b": " + self._words if self._words else reason)

    def _cut(self, reason: "BaseException | bytes") -> UnreachableError:
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        return UnreachableError(f"{self.source}: the connection to the program was cut: {' '.join(text.split())}")


def _failure(status: bytes) -> bytes:
    """Return why the program could not run, or how it failed; nothing after a success."""
    try:
        answer = json.loads(status)
    except ValueError:
        return status
    return b"" if answer.get("status") == "Success" else str(answer.get("message", "")).encode()


@contextmanager
def exec_stream(api: Api, pod: str, container: str, command: Sequence[str]) -> Iterator[ExecStream]:
    """Run a command in a container of a running pod.

    Raises:
        ApiError: the server refused it.
        UnreachableError: there was no answer.
    """
    words = [("command", word) for word in command]
    query = urlencode([*words, ("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")])
    path = PODS.path(api.namespace, pod, "exec")
    source = f"pod {pod}"
    try:
        connection = _connect(api, f"{path}?{query}")
    except websocket.WebSocketBadStatusException as error:
        raise api.refusal(error.status_code, error.resp_body or b"", f"create {PODS}/exec", path) from error
    except (OSError, HTTPException, websocket.WebSocketException) as error:
        raise UnreachableError(
            f"{api.origin}: cannot be reached to exec in pod {pod}: {' '.join(str(error).split())}"
        ) from error
    try:
        yield ExecStream(connection, source)
    finally:
        connection.shutdown()  # type: ignore[no-untyped-call]  # the library does not annotate it


def _connect(api: Api, path: str) -> websocket.WebSocket:
    credentials = api.credentials
    try:
        return _open(credentials, path)
    except websocket.WebSocketBadStatusException as error:
        if error.status_code != 401:
            raise
        return _open(api.log_in_again(credentials), path)


def _open(credentials: Credentials, path: str) -> websocket.WebSocket:
    url = urlsplit(credentials.server)
    is_tls = url.scheme == "https"
    host, port = url.hostname or "", url.port or (443 if is_tls else 80)
    plain = _tcp(credentials.proxy, host, port)
    try:
        stream = _tls(credentials, plain, host) if is_tls else plain
        stream.settimeout(SILENT_S)
        return websocket.create_connection(
            f"{'wss' if is_tls else 'ws'}://{url.netloc}{url.path}{path}",
            socket=stream,
            timeout=SILENT_S,
            header=[f"{name}: {value}" for name, value in credentials.login()],
            subprotocols=["v4.channel.k8s.io"],
            suppress_origin=True,
            skip_utf8_validation=True,
        )
    except BaseException:
        plain.close()
        raise


def _tls(credentials: Credentials, plain: socket.socket, host: str) -> socket.socket:
    context = ssl.create_default_context(cafile=credentials.ca_file)
    if not credentials.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if credentials.client_cert is not None:
        context.load_cert_chain(credentials.client_cert, credentials.client_key)
    return context.wrap_socket(plain, server_hostname=credentials.tls_server_name or host)


def _tcp(proxy: str | None, host: str, port: int) -> socket.socket:
    if proxy is None:
        return socket.create_connection((host, port), _CONNECT_S)
    if proxy.startswith("socks"):
        return connect_through(proxy, host, port, _CONNECT_S)
    url = urlsplit(proxy)
    headers = {}
    if url.username is not None:
        login = b"%s:%s" % (unquote_to_bytes(url.username), unquote_to_bytes(url.password or ""))
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    connection = HTTPConnection(url.hostname or "", url.port or 80, timeout=_CONNECT_S)
    connection.set_tunnel(host, port, headers)
    connection.connect()
    return connection.sock
