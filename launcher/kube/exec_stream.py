"""Run a program in a container, with its standard streams, as `kubectl exec` does: WebSocket, v4.channel.k8s.io.

Each message begins with a byte that names its stream. Nothing tells the program that its standard input has ended, so
it must end by itself, or with the connection.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

import websocket

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials
from launcher.kube.api import Api
from launcher.kube.resources import PODS

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
    path, action = PODS.path(api.namespace, pod, "exec"), f"create {PODS}/exec"
    source = f"pod {pod}"
    try:
        connection = _connect(api, f"{path}?{query}", f"exec in {source}")
    except websocket.WebSocketBadStatusException as error:
        raise api.refusal(error.status_code, error.resp_body or b"", action, path) from error
    except (OSError, websocket.WebSocketException) as error:
        raise UnreachableError(
            f"{api.origin}: cannot be reached to exec in {source}: {' '.join(str(error).split())}"
        ) from error
    try:
        yield ExecStream(connection, source)
    finally:
        # The library's own `shutdown` leaves TLS within TLS open.
        if connection.sock is not None:
            connection.sock.close()


def _connect(api: Api, path: str, action: str) -> websocket.WebSocket:
    credentials = api.credentials
    try:
        return _open(api, credentials, path, action)
    except websocket.WebSocketBadStatusException as error:
        if error.status_code != 401:
            raise
        return _open(api, api.log_in_again(credentials), path, action)


def _open(api: Api, credentials: Credentials, path: str, action: str) -> websocket.WebSocket:
    stream = api.open_socket(action)
    try:
        stream.settimeout(SILENT_S)
        return websocket.create_connection(
            credentials.server.replace("http", "ws", 1) + path,
            socket=stream,
            timeout=SILENT_S,
            header=[f"{name}: {value}" for name, value in credentials.login()],
            subprotocols=["v4.channel.k8s.io"],
            suppress_origin=True,
            skip_utf8_validation=True,
            redirect_limit=0,  # the other place would get the login
        )
    except BaseException:
        stream.close()
        raise
