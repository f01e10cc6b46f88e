"""How the API server is reached: its address, whom to trust, and who we are.

A value of its own, so that the transport knows neither a kubeconfig nor the Kubernetes client.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode


@dataclass(frozen=True)
class Access:
    """The way to one API server.

    Attributes:
        server: its URL, with a path where a proxy serves several clusters.
        ca_file: the certificates to trust; None are the system's.
        client_cert, client_key: files of the client's certificate and its key.
        token: gives the bearer token, asked for at every request, as tokens expire.
        proxy: URL of a proxy; None is none, whatever the environment says.
        verify: False trusts any certificate.
        tls_server_name: the name that the server's certificate must have, if not the URL's.
    """

    server: str
    ca_file: str | None
    client_cert: str | None
    client_key: str | None
    token: Callable[[], str | None]
    proxy: str | None
    verify: bool
    tls_server_name: str | None

    def url(self, path: str, query: Mapping[str, str]) -> str:
        """The URL of a resource."""
        url = f"{self.server.rstrip('/')}/{quote(path.lstrip('/'))}"
        return f"{url}?{urlencode(query)}" if query else url
