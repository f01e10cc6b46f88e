"""Which cluster, and as which user: from a kubeconfig or from the pod's own service account.

The official client reads both (merged files, contexts, exec plugins, certificates, tokens), in any version from 29 to
37; only its findings are used. This is the only module that imports it, and it is itself imported by the first command
that needs a cluster.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import yaml
from kubernetes import config
from kubernetes.client import Configuration

from launcher.errors import RequestError, UnreachableError
from launcher.kube.access import DEFAULT_KUBECONFIG, SERVICE_ACCOUNT, ClusterAccess, Credentials, is_in_cluster


@dataclass(frozen=True)
class ConfiguredCluster:
    """A cluster's login, the namespace that goes with it, and for messages the origin of both."""

    credentials: Credentials
    namespace: str
    origin: str


def find_cluster(access: ClusterAccess) -> ConfiguredCluster:
    """Return the cluster that `access` and the environment name; see `launcher.kube.api.connect`."""
    if access.kubeconfig is not None or os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG.is_file():
        return _from_kubeconfig(access)
    if access.context is None and is_in_cluster():
        return _from_service_account()
    raise UnreachableError(
        "no cluster is configured: there is no ~/.kube/config, KUBECONFIG is not set and this is no pod; "
        "give --kubeconfig, or run on this machine with --backend local"
    )


def _from_service_account() -> ConfiguredCluster:
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise UnreachableError(f"this pod's service account: {error}; give --kubeconfig") from error
    return ConfiguredCluster(_credentials(configuration), namespace, "this pod's service account")


def _from_kubeconfig(access: ClusterAccess) -> ConfiguredCluster:
    files = None if access.kubeconfig is None else str(access.kubeconfig.expanduser())
    paths = files or os.environ.get("KUBECONFIG") or str(DEFAULT_KUBECONFIG)
    if not any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path):
        raise UnreachableError(f"kubeconfig {paths}: no such file; give --kubeconfig or set KUBECONFIG")
    try:
        context = _context(access.context, paths) or config.list_kube_config_contexts(config_file=files)[1]
        configuration = Configuration()
        with _logged_errors() as complaints:
            config.load_kube_config(config_file=files, context=access.context, client_configuration=configuration)
    except config.ConfigException as error:
        raise UnreachableError(f"kubeconfig {paths}: {_one_line(error)}; fix it or give --kubeconfig") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UnreachableError(f"kubeconfig {paths}: cannot be read: {_one_line(error)}; fix it") from error
    if complaints and not (configuration.api_key or configuration.cert_file):
        raise UnreachableError(f"kubeconfig {paths}: {' '.join(complaints[0].split())}; log in again, or fix it")
    namespace = (context.get("context") or {}).get("namespace") or "default"
    return ConfiguredCluster(_credentials(configuration), namespace, f"context {context['name']} of kubeconfig {paths}")


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collect the errors that the client logs: if a login plugin fails, it logs that and continues without a login."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector, root = Collector(logging.ERROR), logging.getLogger()
    root.addHandler(collector)
    try:
        yield messages
    finally:
        root.removeHandler(collector)


def _context(name: str | None, paths: str) -> Any:
    """Return the named context. The client would insist on a current context first, which a file need not have.

    Raises:
        RequestError: no context has this name.
    """
    if name is None:
        return None
    files = [Path(path).expanduser() for path in paths.split(os.pathsep) if path]
    documents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    contexts = [context for document in documents if document for context in document.get("contexts") or ()]
    # If several files have this context, the first file counts, for the client too.
    match = next((context for context in contexts if context["name"] == name), None)
    if match is None:
        names = ", ".join(dict.fromkeys(str(context["name"]) for context in contexts)) or "none"
        raise RequestError(f"--context {name}: not in kubeconfig {paths}, which has {names}")
    return match


def _credentials(configuration: Any) -> Credentials:
    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ca_file=configuration.ssl_ca_cert,
        client_cert=configuration.cert_file,
        client_key=configuration.key_file,
        token=token_source(configuration),
        proxy=_proxy(configuration),
        verify=bool(configuration.verify_ssl),
        tls_server_name=configuration.tls_server_name,
    )


def _proxy(configuration: Any) -> str | None:
    """Return the proxy to use: the client keeps the environment's proxy and its NO_PROXY apart."""
    if not configuration.proxy:
        return None
    host = urlsplit(str(configuration.host)).hostname or ""
    return None if proxy_bypass(host) else str(configuration.proxy)


def token_source(configuration: Any) -> Callable[[], str | None]:
    """Return a function that gives the current token: the client renews one that is about to expire.

    Only one thread renews at a time, because each would start its own plugin. The key's name differs by version.
    """
    lock = threading.Lock()

    def token() -> str | None:
        for name in ("authorization", "BearerToken"):
            try:
                # A plugin that fails leaves its last token: the server says whether that is too old.
                with lock, _logged_errors():
                    header = configuration.get_api_key_with_prefix(name)
            except (config.ConfigException, OSError, ValueError) as error:
                raise UnreachableError(f"the login cannot be renewed: {_one_line(error)}; log in again") from error
            if header:
                # In a pod the client writes `bearer`, elsewhere `Bearer`; the last line of a file has a line end.
                return str(header).split(maxsplit=1)[-1].strip()
        return None

    return token


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
