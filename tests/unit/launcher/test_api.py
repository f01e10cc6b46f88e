"""Requests to an API server that is busy, forgets who we are, warns, or refuses: against one that speaks HTTP."""

import gc
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from launcher.kube.api import Api, ApiError
from launcher.kube.place import Credentials
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS

Answer = tuple[int, dict[str, str], Any]


def forbidden(message: str) -> Answer:
    """As the API server refuses."""
    return 403, {}, {"kind": "Status", "message": message}


class Server:
    """Gives its answers in order, and the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.tokens: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.tokens.append(self.headers.get("Authorization", ""))
                status, headers, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
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
    """Each login gives the next token."""
    numbers = iter(range(1, 100))

    def credentials() -> Credentials:
        number = next(numbers)
        return Credentials(server.address, None, None, None, lambda: f"token-{number}", None, True, None)

    return Api(credentials, credentials(), namespace="training", origin="test")


FINE: Answer = (200, {}, {"items": []})


def test_a_server_that_is_busy_is_asked_again_whatever_was_asked(serve: Any) -> None:
    server = serve((429, {"Retry-After": "0"}, {}), (429, {"Retry-After": "0"}, {}), FINE)
    assert api(server).create(PODS, {"metadata": {"name": "a"}}) == {"items": []}
    assert len(server.tokens) == 3


def test_a_server_that_stays_busy_says_so_itself(serve: Any) -> None:
    server = serve((429, {"Retry-After": "0"}, {"message": "too many requests"}))
    with pytest.raises(ApiError, match="too many requests") as caught:
        api(server).list(PODS)
    assert caught.value.status == 429


def test_of_many_that_are_refused_at_once_one_logs_in_again(serve: Any) -> None:
    server = serve(FINE)
    one = api(server)
    refused = one.credentials
    renewed = [one.log_in_again(refused) for _ in range(5)]
    assert {credentials.token() for credentials in renewed} == {"token-2"}


def test_a_login_that_has_ended_is_renewed_once(serve: Any) -> None:
    server = serve((401, {}, {}), FINE)
    api(server).list(PODS)
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    refusing = serve((401, {}, {"message": "Unauthorized"}))
    with pytest.raises(ApiError, match="not logged in") as caught:
        api(refusing).list(PODS)
    assert caught.value.of_rights
    assert len(refusing.tokens) == 2


def test_a_warning_is_kept_once_and_as_it_was_meant(serve: Any) -> None:
    header = r'299 - "unknown field \"a\", and \\", 299 kube "b, 299 - c"'
    one = api(serve((200, {"Warning": header}, {})))
    warnings: list[str] = []
    for _ in range(2):
        one.create(PODS, {"metadata": {"name": "a"}}, warnings=warnings)
    assert warnings == ['unknown field "a", and \\', "b, 299 - c"]


def test_what_is_listed_says_of_what_kind_it_is_as_what_is_watched_does(serve: Any) -> None:
    page = {"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}}]}
    found, _ = api(serve((200, {}, page))).list(PODS)
    assert found == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}]


@pytest.mark.parametrize(
    ("message", "of_rights"),
    [
        ('pods is forbidden: User "guest" cannot list resource "pods" in API group "" in the namespace "a"', True),
        ('pods "a" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0', False),
        ('jobs "a" is forbidden: unable to create new content in namespace a because it is being terminated', False),
        ('admission webhook "v.example" denied the request: images cannot use the tag latest', False),
    ],
)
def test_missing_rights_are_told_from_other_refusals(serve: Any, message: str, of_rights: bool) -> None:
    with pytest.raises(ApiError) as caught:
        api(serve(forbidden(message))).list(PODS)
    assert caught.value.of_rights == of_rights
    assert ("ask its administrator" in str(caught.value)) == of_rights


def test_a_watch_that_is_refused_in_its_course_lets_its_connection_go_though_its_error_is_kept() -> None:
    """An error holds the frames that it came through, and with them what they had open."""
    refusal = {"type": "ERROR", "object": {"code": 403, "message": "no longer"}}
    words = [{"items": [], "metadata": {"resourceVersion": "1"}}, refusal]
    gone, told = threading.Event(), threading.Semaphore(0)

    def serve(listening: socket.socket) -> None:
        for word in words:
            one, _ = listening.accept()
            with one:
                one.recv(1 << 16)
                data = json.dumps(word).encode() + b"\n"
                # The end of a watch is never said.
                end = b"" if word is refusal else b"0\r\n\r\n"
                one.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
                one.sendall(b"%x\r\n%s\r\n%s" % (len(data), data, end))
                if word is refusal:
                    while one.recv(1 << 16):
                        pass
                    gone.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        credentials = Credentials(address, None, None, None, lambda: None, None, True, None)
        gc.disable()
        try:
            one = Reflector(
                Api(lambda: credentials, credentials, namespace="training", origin="test"),
                Selector(PODS),
                told.release,
            )
            assert told.acquire(timeout=30), "of the list"
            assert told.acquire(timeout=30), "of the refusal"
            assert isinstance(one.error, ApiError)
            assert gone.wait(30)
        finally:
            gc.enable()
