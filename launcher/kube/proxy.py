"""The proxy between the launcher and the API server, by kubectl's rules. Pure but for the environment.

Go's net/http and golang.org/x/net/http/httpproxy have the same rules. A proxy that the kubeconfig names counts always;
else HTTPS_PROXY counts, unless NO_PROXY names the server by name, domain, address or network, each with or without a
port.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import SplitResult, quote, urlsplit

from launcher.errors import UnreachableError

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
# Characters that a user and a password in a URL may have unquoted.
_LOGIN = "%:!$&'()*+,;=~"
# Like Go, use no proxy of the environment for these: they are another machine for a proxy.
_THIS_MACHINE = frozenset(("localhost", "127.0.0.1", "::1"))


def proxy_of(server: str, configured: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy's URL, with a scheme and a port; None if the server is asked directly.

    Args:
        configured: `proxy-url` of the kubeconfig; empty without one.

    Raises:
        UnreachableError: the proxy's address cannot be used. The message does not show its password.
    """
    url = urlsplit(server)
    if configured:
        return _checked(configured, "proxy-url of the kubeconfig")
    name = f"{url.scheme}_proxy"
    variable = next((word for word in (name.upper(), name) if environ.get(word)), None)
    exceptions = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    host, port = (url.hostname or "").rstrip("."), url.port or _PORTS.get(url.scheme, 443)
    if variable is None or host in _THIS_MACHINE or any(_matches(word, host, port) for word in exceptions.split(",")):
        return None
    return _checked(environ[variable], variable)


def without_password(proxy: str) -> str:
    """Return the URL of a proxy as messages may show it."""
    url = urlsplit(proxy)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def _checked(text: str, origin: str) -> str:
    """Return the URL of a proxy; one without a scheme speaks HTTP."""
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    parts = _split(url)
    if parts is None or not is_host(parts.hostname or ""):
        raise UnreachableError(f"{origin}: is not the address of a proxy; write it like http://proxy.example:3128")
    if parts.scheme not in _PORTS:
        raise UnreachableError(
            f"{origin}: a proxy of the kind {parts.scheme}:// is not supported; give one of http://, https:// or socks5://"
        )
    login, at, address = parts.netloc.rpartition("@")
    port = "" if parts.port is not None else f":{_PORTS[parts.scheme]}"
    return f"{parts.scheme}://{quote(login, safe=_LOGIN)}{at}{address}{port}"


def is_host(text: str) -> bool:
    """Return whether the text can be the name or the address of a host. A name in other letters begins with `xn--`."""
    try:
        return text.isascii() and text.isprintable() and bool(text.encode("idna"))
    except UnicodeError:  # an empty part, or one of more than 63 letters
        return False


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL that names a host; None if it is not such a URL."""
    try:
        parts = urlsplit(url)
        # A port is checked when it is read.
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable and url.isprintable() and " " not in url else None


def _matches(word: str, host: str, port: int) -> bool:
    """Return whether a word of NO_PROXY names the server."""
    word = word.strip().lower()
    address = _address(host)
    if word == "*":
        return True
    if "/" in word:
        try:
            return address is not None and address in ipaddress.ip_network(word, strict=False)
        except ValueError:
            return False
    if _address(word) is None and (parts := _split(f"//{word}")) is not None:
        if parts.port is not None and parts.port != port:
            return False
        word = parts.hostname or word
    if address is not None:
        return _address(word) == address
    word = word.rstrip(".")
    if word.startswith("*."):
        word = word[1:]
    return bool(word) and (host.endswith(word) if word[0] == "." else host == word or host.endswith(f".{word}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
