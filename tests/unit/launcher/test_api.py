"""Requests to a real HTTP server that is busy, forgets the login, warns, or refuses."""

import gc
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

from launcher.errors import ApiError, UnreachableError
from launcher.kube.access import Credentials
from launcher.kube.api import Api
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import NODES, PODS, Resource

Answer = tuple[int, dict[str, str], Any]


def forbidden(message: str) -> Answer:
    """Return an answer with which the API server refuses."""
    return 403, {}, {"kind": "Status", "message": message}


class Server:
    """Gives its answers in order, and repeats the last one."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.tokens: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.tokens.append(self.headers.get("Authorization", ""))
                status, headers, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def api(server: Server) -> Api:
    """Return an API whose logins give one token after the other."""
    numbers = iter(range(1, 100))

    def credentials() -> Credentials:
        number = next(numbers)
        return Credentials(
            server.address, None, None, None, lambda: [("Authorization", f"Bearer token-{number}")], None, True, None
        )

    return Api(credentials, credentials(), namespace="training", origin="test")


FINE: Answer = (200, {}, {"items": []})


def test_every_request_is_repeated_to_a_busy_server(serve: Any) -> None:
    server = serve((429, {"Retry-After": "0"}, {}), (429, {"Retry-After": "0"}, {}), FINE)
    assert api(server).create(PODS, {"metadata": {"name": "a"}}) == {"items": []}
    assert len(server.tokens) == 3


def test_a_server_that_stays_busy_gives_its_own_message(serve: Any) -> None:
    server = serve((429, {"Retry-After": "0"}, {"message": "too many requests"}))
    with pytest.raises(ApiError, match="too many requests") as caught:
        api(server).list(PODS)
    assert caught.value.status == 429


@pytest.mark.parametrize(("wanted", "words"), [("11", "11 s"), ("3600", "1 h"), ("9" * 400, "24855 d 3 h")])
def test_a_server_that_wants_a_long_peace_is_an_error_at_once(serve: Any, wanted: str, words: str) -> None:
    server = serve((429, {"Retry-After": wanted}, {"message": "too many requests"}), FINE)
    with pytest.raises(ApiError, match=f"too many requests; test is too busy: try again in {words}$") as caught:
        api(server).list(PODS)
    assert caught.value.transient
    assert len(server.tokens) == 1


def test_only_one_of_several_refused_threads_logs_in_again(serve: Any) -> None:
    server = serve(FINE)
    client = api(server)
    refused = client.credentials
    renewed = [client.log_in_again(refused) for _ in range(5)]
    assert {credentials.login()[0][1] for credentials in renewed} == {"Bearer token-2"}


def test_an_expired_login_is_renewed_once(serve: Any) -> None:
    server = serve((401, {}, {}), FINE)
    api(server).list(PODS)
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    refusing = serve((401, {}, {"message": "Unauthorized"}))
    with pytest.raises(ApiError, match="not logged in") as caught:
        api(refusing).list(PODS)
    assert caught.value.of_rights
    assert len(refusing.tokens) == 2


def test_the_caller_gets_each_warning_once_and_unescaped(serve: Any) -> None:
    header = r'299 - "unknown field \"a\", and \\", 299 kube "b, 299 - c"'
    client = api(serve((200, {"Warning": header}, {})))
    warnings: list[str] = []
    for _ in range(2):
        client.create(PODS, {"metadata": {"name": "a"}}, warnings=warnings)
    assert warnings == ['unknown field "a", and \\', "b, 299 - c"]


def test_a_listed_object_has_its_kind_as_a_watched_object_has(serve: Any) -> None:
    page = {"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}}]}
    items, _ = api(serve((200, {}, page))).list(PODS)
    assert items == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}]


@pytest.mark.parametrize(
    ("message", "of_rights"),
    [
        ('pods is forbidden: User "guest" cannot list resource "pods" in API group "" in the namespace "a"', True),
        ('pods "a" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0', False),
        ('jobs "a" is forbidden: unable to create new content in namespace a because it is being terminated', False),
        ('admission webhook "v.example" denied the request: images cannot use the tag latest', False),
    ],
)
def test_missing_rights_differ_from_other_refusals(serve: Any, message: str, of_rights: bool) -> None:
    with pytest.raises(ApiError) as caught:
        api(serve(forbidden(message))).list(PODS)
    assert caught.value.of_rights == of_rights
    assert ("ask its administrator" in str(caught.value)) == of_rights


@pytest.mark.parametrize(("resource", "place"), [(PODS, "namespace training"), (NODES, "the whole cluster")])
def test_missing_rights_name_the_place_that_needs_them(serve: Any, resource: Resource, place: str) -> None:
    with pytest.raises(ApiError, match=f"you have no right to list {resource.plural} in {place}: ask its"):
        api(serve(forbidden('x is forbidden: User "guest" cannot list resource "x"'))).list(resource)


def test_a_watch_that_is_refused_midway_closes_its_connection_while_its_error_lives() -> None:
    """An error keeps its stack frames alive, and with them their open connections."""
    refusal = {"type": "ERROR", "object": {"code": 403, "message": "no longer"}}
    answers = [{"items": [], "metadata": {"resourceVersion": "1"}}, refusal]
    closed, changes = threading.Event(), threading.Semaphore(0)

    def serve(listening: socket.socket) -> None:
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                data = json.dumps(answer).encode() + b"\n"
                # A watch has no last chunk.
                end = b"" if answer is refusal else b"0\r\n\r\n"
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
                connection.sendall(b"%x\r\n%s\r\n%s" % (len(data), data, end))
                if answer is refusal:
                    while connection.recv(1 << 16):
                        pass
                    closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        credentials = Credentials(address, None, None, None, list, None, True, None)
        gc.disable()
        try:
            reflector = Reflector(
                Api(lambda: credentials, credentials, namespace="training", origin="test"),
                Selector(PODS),
                changes.release,
            )
            assert changes.acquire(timeout=300), "the list"
            assert changes.acquire(timeout=300), "the refusal"
            assert isinstance(reflector.error, ApiError)
            assert closed.wait(300)
        finally:
            gc.enable()


@pytest.mark.parametrize("name", ["a?limit=1", "a/log", "a#b", "é", "a%2Fb"])
def test_a_name_stays_one_part_of_a_path(name: str) -> None:
    path = PODS.path(name, name, "log")
    assert [unquote(part) for part in path.split("/")] == ["", "api", "v1", "namespaces", name, "pods", name, "log"]
    assert "?" not in path


@pytest.mark.parametrize(
    "body", [{}, {"status": "ok"}, [], None, 5, "x", {"items": 5}, {"items": [None]}, {"items": [], "metadata": 1}]
)
def test_an_answer_that_no_api_server_gives_is_no_empty_list(serve: Any, body: object) -> None:
    """Another service at this address, or a page to log in, can answer any request with 200."""
    client = api(serve((200, {}, body)))
    for ask in (lambda: client.list(PODS), lambda: client.find(PODS, "a")):
        with pytest.raises(UnreachableError, match=r"the answer is no (list|object); is this an API server\?$"):
            ask()


def test_an_empty_list_can_be_null(serve: Any) -> None:
    answer = {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": None}
    assert api(serve((200, {}, answer))).list(PODS) == ([], "7")
