"""An answer is read as it comes and ends with the stop signal; a missing answer gives its true reason."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from launcher.kube.access import Credentials
from launcher.podlogs.errors import (
    ConnectionCutError,
    LogRefusedError,
    NotConnectedError,
    ReadStoppedError,
    SilentError,
    Timing,
    UntrustedError,
)
from launcher.podlogs.transport import LogResponse, StopSignal, Transport
from trainer.topology.ports import free_port

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
STATUS = b'{"kind":"Status","message":"container \\"c\\" in pod \\"p\\" is waiting to start: ContainerCreating"}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def refusal(status: str, body: bytes, *headers: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}".encode(), b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


class Server:
    """A real server on loopback. `serve` gets each connection and each request on it."""

    def __init__(self, serve: Callable[[socket.socket, bytes], None], context: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.requests: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> "Server":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for connection in (self._listening, *self._open):
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            with connection:
                while request := connection.recv(1 << 16):
                    self.requests.append(request)
                    self._serve(connection, request)


def credentials_for(port: int, *, scheme: str = "http") -> Credentials:
    return Credentials(f"{scheme}://127.0.0.1:{port}", None, None, None, list, None, True, None)


@contextmanager
def open_transport(
    credentials: Credentials, stop: StopSignal | None = None, *, idle_s: float = 60
) -> Iterator[Transport]:
    with closing(Transport(credentials, stop or StopSignal(), Timing(idle_s=idle_s))) as transport:
        yield transport


@contextmanager
def open_log(server: Server, stop: StopSignal | None = None, *, idle_s: float = 60) -> Iterator[LogResponse]:
    credentials = credentials_for(server.port)
    with open_transport(credentials, stop, idle_s=idle_s) as transport, transport.get("/log", {}) as response:
        yield response


def read(credentials: Credentials, *, idle_s: float = 60) -> bytes:
    with open_transport(credentials, idle_s=idle_s) as transport, transport.get("/log", {}) as response:
        return b"".join(response.blocks())


def test_every_byte_of_many_small_chunks_arrives() -> None:
    lines = [b"line %d\n" % number for number in range(20_000)]
    with Server(lambda connection, _: connection.sendall(HEAD + b"".join(map(chunk, lines)) + END)) as server:
        assert read(credentials_for(server.port)) == b"".join(lines)


def test_a_line_arrives_before_the_next_line_is_written() -> None:
    go = threading.Event()

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + chunk(b"one\n"))
        go.wait()
        connection.sendall(chunk(b"two\n") + END)

    with (
        Server(serve) as server,
        open_transport(credentials_for(server.port)) as transport,
        transport.get("/log", {}) as response,
    ):
        blocks = response.blocks()
        assert next(blocks) == b"one\n"
        go.set()
        assert list(blocks) == [b"two\n"]


def test_a_quiet_answer_gives_its_reader_empty_blocks() -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + chunk(b"one\n"))

    with (
        Server(serve) as server,
        open_transport(credentials_for(server.port)) as transport,
        transport.get("/log", {}) as response,
    ):
        blocks = response.blocks(tick_s=0.01)
        assert [block for block, _ in zip(blocks, range(4), strict=False) if block] == [b"one\n"]


def test_ticks_do_not_hide_a_silence() -> None:
    with (
        Server(lambda connection, _: connection.sendall(HEAD)) as server,
        open_log(server, idle_s=0.2) as response,
        pytest.raises(SilentError),
    ):
        assert not any(response.blocks(tick_s=0.01))


def test_one_connection_serves_one_request_after_the_other() -> None:
    with (
        Server(lambda connection, _: connection.sendall(HEAD + chunk(b"a\n") + END)) as server,
        open_transport(credentials_for(server.port)) as transport,
    ):
        for _ in range(3):
            with transport.get("/log", {}) as response:
                assert b"".join(response.blocks()) == b"a\n"
        assert server.connections == 1


def test_each_request_carries_the_current_token_and_its_query() -> None:
    tokens = iter(["first", "second"])
    with Server(lambda connection, _: connection.sendall(HEAD + END)) as server:
        credentials = replace(credentials_for(server.port), login=lambda: [("Authorization", f"Bearer {next(tokens)}")])
        with open_transport(credentials) as transport:
            for _ in range(2):
                with transport.get("/api/v1/pods/b/log", {"sinceTime": "2026-11-24T16:50:47Z"}) as response:
                    list(response.blocks())
    assert [b"Bearer first" in server.requests[0], b"Bearer second" in server.requests[1]] == [True, True]
    assert server.requests[0].startswith(b"GET /api/v1/pods/b/log?sinceTime=2026-11-24T16%3A50%3A47Z HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "status", "message", "after"),
    [
        (refusal("400 Bad Request", STATUS), 400, 'in pod "p" is waiting to start: ContainerCreating', None),
        (refusal("429 Too Many", b"slow down\nplease\n", b"Retry-After: 7"), 429, "slow down", 7),
        (refusal("502 Bad Gateway", b""), 502, "no reason given", None),
        (refusal("500 Error", b"[1]"), 500, "no reason given", None),
    ],
)
def test_a_refusal_has_the_servers_message(answer: bytes, status: int, message: str, after: float | None) -> None:
    with Server(lambda connection, _: connection.sendall(answer)) as server, pytest.raises(LogRefusedError) as raised:
        read(credentials_for(server.port))
    assert raised.value.status == status
    assert raised.value.message.endswith(message)
    assert raised.value.retry_after_s == after
    assert str(raised.value).startswith(f"{status}: ")


def test_a_cut_answer_raises_after_its_blocks_have_arrived() -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + chunk(b"one\n"))
        connection.shutdown(socket.SHUT_RDWR)

    with (
        Server(serve) as server,
        open_transport(credentials_for(server.port)) as transport,
        transport.get("/log", {}) as response,
    ):
        blocks = response.blocks()
        assert next(blocks) == b"one\n"
        with pytest.raises(ConnectionCutError):
            next(blocks)


def test_the_transport_can_be_used_after_a_cut() -> None:
    def serve(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + chunk(b"a\n") + (END if b"again" in request else b""))
        if b"again" not in request:
            connection.shutdown(socket.SHUT_RDWR)

    with Server(serve) as server, open_transport(credentials_for(server.port)) as transport:
        with transport.get("/log", {}) as response, pytest.raises(ConnectionCutError):
            list(response.blocks())
        with transport.get("/log", {"again": "1"}) as response:
            assert b"".join(response.blocks()) == b"a\n"


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + chunk(b"a\n")])
def test_a_long_silence_differs_from_a_cut(sent: bytes) -> None:
    with (
        Server(lambda connection, _: connection.sendall(sent)) as server,
        pytest.raises(SilentError, match=r"nothing came for 0\.2 s"),
    ):
        read(credentials_for(server.port), idle_s=0.2)


def test_a_port_without_a_server_is_not_connected() -> None:
    with pytest.raises(NotConnectedError, match=r"127\.0\.0\.1"):
        read(credentials_for(free_port()))


def test_an_unknown_host_is_not_connected() -> None:
    with pytest.raises(NotConnectedError, match=r"no-such-host\.invalid"):
        read(replace(credentials_for(1), server="http://no-such-host.invalid:80"))


def test_the_stop_signal_ends_a_waiting_answer_at_once() -> None:
    """It does not wait for the next line, which comes only afterwards."""
    stop, ended = StopSignal(), threading.Event()

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + chunk(b"one\n"))
        time.sleep(0.2)
        stop.set()
        if ended.wait(60):
            connection.sendall(chunk(b"two\n"))

    with (
        Server(serve) as server,
        open_transport(credentials_for(server.port), stop) as transport,
        transport.get("/log", {}) as response,
    ):
        with pytest.raises(ReadStoppedError):
            list(response.blocks())
        ended.set()


def test_a_reader_that_does_not_read_slows_the_server_down() -> None:
    sent = []

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.settimeout(1)
        connection.sendall(HEAD)
        for number in range(2000):
            connection.sendall(chunk(b"x" * 100_000))
            sent.append(number)

    with (
        Server(serve) as server,
        open_transport(credentials_for(server.port)) as transport,
        transport.get("/log", {}) as response,
    ):
        next(response.blocks())
        time.sleep(1.5)
        # Of 200 MB, only what fits into the sockets' buffers.
        assert len(sent) < 500


def certificate(folder: Path, name: str, *, host: str) -> tuple[Path, ssl.SSLContext]:
    """Return a self-signed certificate for a host name or an address, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path, both = folder / f"{name}.crt", folder / f"{name}.pem"
    path.write_bytes(pem)
    both.write_bytes(pem + key.private_bytes(serialization.Encoding.PEM, form, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return path, context


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    path, context = certificate(tmp_path, "ours", host="127.0.0.1")
    with Server(lambda connection, _: connection.sendall(HEAD + chunk(b"a\n") + END), context) as server:
        yield server, path


def test_a_server_with_the_trusted_certificate_is_read(secure: tuple[Server, Path]) -> None:
    server, path = secure
    assert read(replace(credentials_for(server.port, scheme="https"), ca_file=str(path))) == b"a\n"


def test_another_servers_certificate_is_trusted_only_without_verification(
    secure: tuple[Server, Path], tmp_path: Path
) -> None:
    server, _ = secure
    other, _ = certificate(tmp_path, "other", host="127.0.0.1")
    credentials = replace(credentials_for(server.port, scheme="https"), ca_file=str(other))
    with pytest.raises(UntrustedError, match="certificate"):
        read(credentials)
    assert read(replace(credentials, verify=False)) == b"a\n"


def test_a_missing_certificate_file_is_named(secure: tuple[Server, Path], tmp_path: Path) -> None:
    server, _ = secure
    credentials = replace(credentials_for(server.port, scheme="https"), ca_file=str(tmp_path / "absent.crt"))
    with pytest.raises(UntrustedError, match=r"absent\.crt"):
        read(credentials)


def test_a_client_certificate_that_is_renewed_on_the_disk_counts_from_the_next_connection(tmp_path: Path) -> None:
    server_path, context = certificate(tmp_path, "ours", host="127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    users = [certificate(tmp_path, name, host=name)[0] for name in ("old", "new")]
    for user in users:
        context.load_verify_locations(user)
    seen: list[bytes | None] = []

    def serve(connection: socket.socket, _: bytes) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        seen.append(connection.getpeercert(binary_form=True))
        connection.sendall(HEAD + chunk(b"a\n") + END)
        connection.unwrap()

    current = tmp_path / "current.pem"
    with Server(serve, context) as server:
        credentials = replace(
            credentials_for(server.port, scheme="https"),
            ca_file=str(server_path),
            client_cert=str(current),
            client_key=str(current),
        )
        with open_transport(credentials) as transport:
            for user in users:
                current.write_bytes(user.with_suffix(".pem").read_bytes())
                with transport.get("/log", {}) as response:
                    assert b"".join(response.blocks()) == b"a\n"
    assert seen == [ssl.PEM_cert_to_DER_cert(user.read_text()) for user in users]


def test_a_server_with_a_certificate_for_another_name_is_found_by_that_name(tmp_path: Path) -> None:
    path, context = certificate(tmp_path, "ours", host="kubernetes.example")
    with Server(lambda connection, _: connection.sendall(HEAD + chunk(b"a\n") + END), context) as server:
        credentials = replace(credentials_for(server.port, scheme="https"), ca_file=str(path))
        with pytest.raises(UntrustedError):
            read(credentials)
        assert read(replace(credentials, tls_server_name="kubernetes.example")) == b"a\n"
        assert b"Host: 127.0.0.1:%d\r\n" % server.port in server.requests[-1]


def test_a_proxy_is_used_only_if_the_credentials_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda connection, _: connection.sendall(HEAD + chunk(b"a\n") + END)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(NotConnectedError):
            read(credentials_for(free_port()))
        assert not proxy.requests
        assert read(replace(credentials_for(free_port()), proxy=f"http://127.0.0.1:{proxy.port}")) == b"a\n"
        assert proxy.requests[0].startswith(b"GET http://127.0.0.1:")
