"""The launcher takes the same proxy as kubectl, for requests, for logs and for programs in pods."""

import base64
import hashlib
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials
from launcher.kube.api import Api
from launcher.kube.exec_stream import exec_stream
from launcher.kube.http import Connections
from launcher.kube.proxy import proxy_of
from launcher.podlogs.errors import PodLogError, Timing
from launcher.podlogs.transport import StopSignal, Transport
from tests.unit.podlogs.test_transport import Server, certificate

SERVER, NAMED, PROXY = "https://10.1.2.3:6443", "https://a.corp.example", "http://proxy:3128"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("server", "exceptions", "used"),
    [
        *((SERVER, text, False) for text in ("10.1.2.3", "a, 10.1.2.3 ,b", "10.9.9.9/8", "10.1.2.3:6443", "*")),
        *((SERVER, text, True) for text in ("", ",", "11.0.0.0/8", "10.1.2.3:443", "10.1.2", "10.0.0.0/99", "[")),
        *((NAMED, text, False) for text in ("corp.example", ".corp.example", "*.corp.example", "A.CORP.example")),
        *((NAMED, text, False) for text in ("a.corp.example:443", "example.", "x,example")),
        *((NAMED, text, True) for text in ("orp.example", "a.corp", "a.corp.example:6443", "10.0.0.0/8", "x:y")),
        (SERVER, "10.0.0.0/8", False),
        ("https://corp.example", ".corp.example", True),
        ("https://a.corp.example.:443", "corp.example", False),
        ("https://[fd00::5]:6443", "fd00::/8", False),
        ("https://[fd00::5]:6443", "[fd00::5]:6443", False),
        ("https://[fd00::5]:6443", "fd00:0::5", False),
        ("https://[fd00::5]:6443", "fd01::/16", True),
        *((f"https://{host}:6443", "", False) for host in ("localhost", "127.0.0.1", "[::1]")),
    ],
)  # fmt: skip
def test_no_proxy_has_names_domains_addresses_networks_and_ports(server: str, exceptions: str, used: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert proxy_of(server, "", {"HTTPS_PROXY": PROXY, name: exceptions}) == (PROXY if used else None)
    # The kubeconfig's own proxy counts always.
    assert proxy_of(server, "http://other:1", {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}) == "http://other:1"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({"HTTPS_PROXY": "a:1", "https_proxy": "b:2"}, "http://a:1"),
        ({"HTTPS_PROXY": "", "https_proxy": "b:2"}, "http://b:2"),
        ({"HTTP_PROXY": "a:1", "ALL_PROXY": "a:1"}, None),
        ({"HTTPS_PROXY": "proxy"}, "http://proxy:80"),
        ({"HTTPS_PROXY": "https://proxy/"}, "https://proxy:443"),
        ({"HTTPS_PROXY": " http://u:p%40w@proxy:8080 "}, "http://u:p%40w@proxy:8080"),
        ({"HTTPS_PROXY": "http://mé:p%ff:@proxy:1"}, "http://m%C3%A9:p%ff:@proxy:1"),
        ({"HTTPS_PROXY": "socks5://[::1]"}, "socks5://[::1]:1080"),
    ],
)
def test_a_proxy_of_the_environment_has_a_scheme_and_a_port(environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_of(SERVER, "", environ) == proxy


@pytest.mark.parametrize(
    "text",
    [
        "http://[::1:bad",
        "http://",
        "http://h:99999",
        "u:hidden@h:x",
        "a b",
        "ftp://u:hidden@h",
        "socks4://h",
        "a..b:1",
        "é:1",
    ],
)
def test_an_unusable_proxy_is_named_by_its_origin_without_its_password(text: str) -> None:
    for configured, environ, origin in ((text, {}, "proxy-url"), ("", {"https_proxy": text}, "https_proxy")):
        with pytest.raises(UnreachableError, match=f"^{origin}.*(write it like|give one of)") as error:
            proxy_of(SERVER, configured, environ)
        assert "hidden" not in str(error.value)


class Listener:
    """A program on loopback that talks with one connection after the other."""

    def __init__(self, talk: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._talk, self._context = talk, context
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, suppress(OSError), self._stream(connection) as stream:
                    self._talk(stream)

    def _stream(self, connection: socket.socket) -> socket.socket:
        return self._context.wrap_socket(connection, server_side=True) if self._context else connection

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    listeners: list[Listener] = []

    def start(talk: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Listener:
        listeners.append(Listener(talk, context))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def request(credentials: Credentials) -> bytes:
    """Send a request as the commands do."""
    connections = Connections(credentials, "test")
    return connections.request("POST", "/x", body=None, headers=[], read_s=5, preload=True, action="ask").data


def read_log(credentials: Credentials) -> bytes:
    """Send a request as the readers of logs do."""
    with closing(Transport(credentials, StopSignal(), Timing())) as transport, transport.get("/x", {}) as response:
        return b"".join(response.blocks())


def run_program(credentials: Credentials) -> bytes:
    """Run a program in a pod as the readers of a run's files do; return all that it says."""
    return say_all(Api(lambda: credentials, credentials, namespace="default", origin="test"))


def say_all(api: Api) -> bytes:
    with exec_stream(api, "a-pod", "trainer", ["python3"]) as stream:
        return b"".join(iter(stream.receive, b""))


def answer_all(connection: socket.socket, request: bytes) -> None:
    """Answer a request, or have a program say the same."""
    if b"Upgrade: websocket" in request:
        accept_program(connection, request)
    else:
        connection.sendall(ANSWER)


def accept_program(connection: socket.socket, request: bytes) -> None:
    """Answer as an API server whose program writes `{}` and ends (RFC 6455, v4.channel.k8s.io)."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key is not None
    digest = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Accept: %s\r\n\r\n" % digest
    )
    connection.sendall(b"\x82\x03\x01{}" + b"\x88\x00")


EACH = pytest.mark.parametrize("ask", [request, read_log, run_program])


def through(proxy: str, server: str) -> Credentials:
    return Credentials(server, None, None, None, list, proxy, True, None)


@EACH
def test_a_proxy_gets_its_user_and_password(
    ask: Callable[[Credentials], bytes], listen: Callable[..., Listener]
) -> None:
    heads: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heads.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    proxy = listen(talk)
    with pytest.raises((UnreachableError, PodLogError)) as error:
        ask(through(f"http://u%40%ff:s3cret@{proxy.address}", "https://server.example:6443"))
    assert heads[0].startswith(b"CONNECT server.example:6443 HTTP/1.")
    assert b"Proxy-Authorization: Basic dUD/OnMzY3JldA==\r\n" in heads[0]
    assert "407" in str(error.value) or "the proxy wants a user and a password" in str(error.value)
    assert "s3cret" not in str(error.value)
    if ask is not read_log:
        assert not error.value.transient, "another try does not help"


@EACH
@pytest.mark.parametrize("login", ["", "u%40x:s3cret@"])
def test_a_socks_proxy_gets_the_servers_name_and_passes_the_bytes(
    ask: Callable[[Credentials], bytes], listen: Callable[..., Listener], login: str
) -> None:
    names: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        offered = connection.recv(256)
        connection.sendall(bytes((5, 2 if login and 2 in offered[2:] else 0)))
        if login:
            assert connection.recv(256) == b"\x01\x03u@x\x06s3cret"
            connection.sendall(b"\x01\x00")
        head = connection.recv(256)
        names.append(head[5 : 5 + head[4]])
        connection.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        answer_all(connection, connection.recv(1 << 16))

    proxy = listen(talk)
    assert ask(through(f"socks5://{login}{proxy.address}", "http://server.example:6443")) == b"{}"
    assert names == [b"server.example"]


def pass_on(one: socket.socket, other: socket.socket) -> None:
    """Copy the bytes of each connection to the other, until one ends."""
    while True:
        # TLS can have more bytes than the socket shows.
        pending = [end for end in (one, other) if isinstance(end, ssl.SSLSocket) and end.pending()]
        for readable in pending or select.select([one, other], [], [])[0]:
            if not (data := readable.recv(1 << 16)):
                return
            (other if readable is one else one).sendall(data)


def tunnel_by_connect(connection: socket.socket, port: int) -> None:
    request = connection.recv(1 << 16)
    assert not request or request.startswith(b"CONNECT server.example:6443 "), "nothing: it does not trust this proxy"
    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port)) as server:
        pass_on(connection, server)


def tunnel_by_socks(connection: socket.socket, port: int) -> None:
    connection.recv(256)
    connection.sendall(b"\x05\x00")
    connection.recv(256)
    connection.sendall(b"\x05\x00\x00\x03\x01x\x00\x00")
    with socket.create_connection(("127.0.0.1", port)) as server:
        pass_on(connection, server)


@EACH
@pytest.mark.parametrize(("scheme", "tunnel"), [("http", tunnel_by_connect), ("socks5", tunnel_by_socks)])
def test_the_servers_certificate_is_checked_through_a_proxy(
    ask: Callable[[Credentials], bytes],
    listen: Callable[..., Listener],
    tmp_path: Path,
    scheme: str,
    tunnel: Callable[[socket.socket, int], None],
) -> None:
    ca, context = certificate(tmp_path, "server", host="server.example")
    other, _ = certificate(tmp_path, "other", host="server.example")
    with Server(answer_all, context) as server:
        proxy = listen(lambda connection: tunnel(connection, server.port))
        credentials = through(f"{scheme}://{proxy.address}", "https://server.example:6443")
        assert ask(replace(credentials, ca_file=str(ca))) == b"{}"
        with pytest.raises((UnreachableError, PodLogError), match="certificate") as error:
            ask(replace(credentials, ca_file=str(other)))
        assert not error.value.transient, "another try does not help"


@EACH
def test_a_proxy_with_tls_has_a_certificate_that_is_checked(
    ask: Callable[[Credentials], bytes], listen: Callable[..., Listener], tmp_path: Path
) -> None:
    """Kubectl trusts the same authorities for the proxy as for the server."""
    ca, context = certificate(tmp_path, "server", host="server.example")
    of_proxy, own_context = certificate(tmp_path, "proxy", host="127.0.0.1")
    both = tmp_path / "both.crt"
    both.write_bytes(ca.read_bytes() + of_proxy.read_bytes())
    with Server(answer_all, context) as server:
        proxy = listen(lambda connection: tunnel_by_connect(connection, server.port), own_context)
        credentials = through(f"https://{proxy.address}", "https://server.example:6443")
        assert ask(replace(credentials, ca_file=str(both))) == b"{}"
        with pytest.raises((UnreachableError, PodLogError), match="certificate"):
            ask(replace(credentials, ca_file=str(ca)))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ((b"\x05\xff",), "asks for a user and a password"),
        ((b"HT",), "speaks another protocol"),
        ((b"",), "closed the connection"),
        ((), "takes no name, user or password of more than 255 bytes"),
        ((b"\x05\x00", b"\x05\x05\x00\x01"), "no connection to it: the server refuses"),
    ],
)
def test_a_refusal_of_a_socks_proxy_is_told(
    listen: Callable[..., Listener], answers: tuple[bytes, ...], reason: str
) -> None:
    def talk(connection: socket.socket) -> None:
        for answer in answers:
            connection.recv(256)
            connection.sendall(answer)

    login = "" if answers else f"u:{'p' * 256}@"
    with pytest.raises(UnreachableError, match=reason):
        request(through(f"socks5://{login}{listen(talk).address}", "http://server.example:6443"))
