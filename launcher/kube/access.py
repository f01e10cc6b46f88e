"""Which cluster a command means, and how to log in there, without importing the official client or asking a server."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.files import with_home

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = with_home(Path("~/.kube/config"))


@dataclass(frozen=True)
class ClusterAccess:
    """The user's choice of a cluster. Kubeconfig, or the pod, supplies what is left out."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None


Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Credentials:
    """How to reach the API server, and as which user. Files are paths.

    Attributes:
        login: returns the headers that say who the user is; it is called before each request.
        proxy: the URL of the proxy, with its user and password.
    """

    server: str
    ca_file: str | None
    client_cert: str | None
    client_key: str | None
    login: Callable[[], Headers]
    proxy: str | None
    verify: bool
    tls_server_name: str | None


def is_configured(access: ClusterAccess) -> bool:
    """Return whether anything says where a cluster is. No server is asked."""
    named = access.kubeconfig is not None or access.context is not None or bool(os.environ.get("KUBECONFIG"))
    return named or DEFAULT_KUBECONFIG.is_file() or is_in_cluster()


def is_in_cluster() -> bool:
    """Return whether this process runs in a pod that has a service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file()
