"""A connection through a SOCKS5 proxy (RFC 1928, and RFC 1929 for a user and a password), such as `ssh -D`.

urllib3 would need another package for it. libcurl, which reads the logs, knows SOCKS itself.
"""

import socket
from urllib.parse import unquote_to_bytes, urlsplit

_VERSION, _CONNECT, _BY_NAME = 5, 1, 3
_NO_LOGIN, _PASSWORD = 0, 2
_LONGEST = 255  # bytes of a user, a password or a name
_ADDRESS_BYTES = {1: 4, 4: 16}
_REFUSALS = {
    2: "it does not allow this",
    3: "it has no way to the network",
    4: "it has no way there",
    5: "the server refuses",
}


def connect_through(proxy: str, host: str, port: int, timeout_s: float | None) -> socket.socket:
    """Return a connection to a host, whose name the proxy resolves.

    Raises:
        OSError: there is no connection to the proxy, or the proxy refuses; the text says which.
    """
    url = urlsplit(proxy)
    connection = socket.create_connection((url.hostname or "", url.port or 1080), timeout_s)
    try:
        login = None if url.username is None else (unquote_to_bytes(url.username), unquote_to_bytes(url.password or ""))
        _handshake(connection, host.encode("ascii"), port, login)
    except BaseException:
        connection.close()
        raise
    return connection


def _handshake(connection: socket.socket, host: bytes, port: int, login: tuple[bytes, bytes] | None) -> None:
    if max(map(len, (host, *(login or ())))) > _LONGEST:
        raise OSError(f"the SOCKS proxy takes no name, user or password of more than {_LONGEST} bytes")
    method = _NO_LOGIN if login is None else _PASSWORD
    connection.sendall(bytes((_VERSION, 1, method)))
    if (answer := _read(connection, 2)) != bytes((_VERSION, method)):
        reason = "asks for a user and a password" if answer[0] == _VERSION else "speaks another protocol"
        raise OSError(f"the SOCKS proxy {reason}")
    if login is not None:
        user, password = login
        connection.sendall(bytes((1, len(user))) + user + bytes((len(password),)) + password)
        if _read(connection, 2)[1] != 0:
            raise OSError("the SOCKS proxy does not accept the user and the password")
    connection.sendall(bytes((_VERSION, _CONNECT, 0, _BY_NAME, len(host))) + host + port.to_bytes(2, "big"))
    _, status, _, kind = _read(connection, 4)
    if status != 0:
        raise OSError(f"the SOCKS proxy has no connection to it: {_REFUSALS.get(status, f'failure {status}')}")
    # The proxy's own address is not needed.
    _read(connection, (_ADDRESS_BYTES[kind] if kind in _ADDRESS_BYTES else _read(connection, 1)[0]) + 2)


def _read(connection: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes."""
    data = b""
    while len(data) < count:
        block = connection.recv(count - len(data))
        if not block:
            raise OSError("the SOCKS proxy closed the connection")
        data += block
    return data
