"""A program in a pod is reached with a renewed login, and by no detour. `test_proxy.py` has the ways to the server."""

import socket
from dataclasses import replace

import pytest

from launcher.errors import ApiError, LauncherError, UnreachableError
from launcher.kube.access import Credentials
from launcher.kube.api import Api
from tests.unit.launcher.test_proxy import accept_program, say_all
from tests.unit.podlogs.test_transport import Server, credentials_for, refusal

FORBIDDEN = b'{"message": "pods "a-pod" is forbidden: User "ann" cannot create resource "pods/exec""}'


def with_token(server: Server, token: str) -> Credentials:
    return replace(credentials_for(server.port), login=lambda: [("Authorization", f"Bearer {token}")])


def test_an_expired_login_is_renewed_once_and_the_program_runs_with_the_new_one() -> None:
    def serve(connection: socket.socket, request: bytes) -> None:
        if b"Authorization: Bearer new\r\n" in request:
            accept_program(connection, request)
        else:
            connection.sendall(refusal("401 Unauthorized", b'{"message": "Unauthorized"}'))

    with Server(serve) as server:
        old, new, wrong = (with_token(server, token) for token in ("old", "new", "wrong"))
        assert say_all(Api(lambda: new, old, namespace="default", origin="context c")) == b"{}"
        assert [b"Bearer old" in request for request in server.requests if request[:4] == b"GET "] == [True, False]
        with pytest.raises(ApiError, match=r"^context c: not logged in \(Unauthorized\); log in again"):
            say_all(Api(lambda: wrong, old, namespace="default", origin="context c"))
        assert [b"Bearer wrong" in request for request in server.requests][-2:] == [False, True]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (refusal("403 Forbidden", FORBIDDEN), ApiError, "you have no right to create pods/exec in namespace default"),
        (refusal("200 OK", b"<html>"), ApiError, "create pods/exec in namespace default: <html>"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UnreachableError, "cannot be reached to exec in pod a-pod: "),
        (b"", UnreachableError, "cannot be reached to exec in pod a-pod: "),
    ],
)
def test_a_refusal_is_one_line_with_the_pod_or_the_right(answer: bytes, kind: type[LauncherError], text: str) -> None:
    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    with Server(serve) as server:
        credentials = credentials_for(server.port)
        with pytest.raises(kind) as error:
            say_all(Api(lambda: credentials, credentials, namespace="default", origin="context c"))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_no_other_place_gets_the_login() -> None:
    with Server(accept_program) as other:
        answer = refusal("302 Found", b"", b"Location: ws://127.0.0.1:%d/" % other.port)
        with Server(lambda connection, _: connection.sendall(answer)) as server:
            credentials = with_token(server, "secret")
            with pytest.raises(UnreachableError, match="to exec in pod a-pod: Redirect limit"):
                say_all(Api(lambda: credentials, credentials, namespace="default", origin="context c"))
        assert other.requests == []
