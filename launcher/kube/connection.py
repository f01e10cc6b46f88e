"""Where the cluster is and who we are there: kubeconfig or the pod's own service account.

The official client reads them (merged files, contexts, exec plugins, certificates, tokens), in any version from 29 to
37; what it found is all that is taken from it. It is imported here alone, when a command needs a cluster.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.errors import RequestError, UnreachableError
from launcher.kube.api import Api, Credentials
from launcher.kube.place import Place

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = Path.home() / ".kube" / "config"


@dataclass(frozen=True)
class _Found:
    """A cluster's address, for messages its origin, and the namespace that goes with it."""

    configuration: Any = field(repr=False)
    namespace: str
    origin: str


def is_configured(place: Place) -> bool:
    """Whether anything says where a cluster is; without asking it, and without importing the client."""
    named = place.kubeconfig is not None or place.context is not None or bool(os.environ.get("KUBECONFIG"))
    return named or DEFAULT_KUBECONFIG.is_file() or _in_cluster()


def connect(place: Place) -> Api:
    """The API of the cluster that `place` and the environment name. Nothing is asked of it yet.

    Raises:
        UnreachableError: no configuration, or one that cannot be used.
        RequestError: there is no such context.
    """
    found = _find(place)
    return Api(
        lambda: _credentials(_find(place).configuration),
        _credentials(found.configuration),
        namespace=place.namespace or found.namespace,
        origin=found.origin,
    )


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file()


def _find(place: Place) -> _Found:
    chosen = place.kubeconfig is not None or bool(os.environ.get("KUBECONFIG"))
    if not chosen and not DEFAULT_KUBECONFIG.is_file():
        if place.context is None and _in_cluster():
            return _from_service_account()
        raise UnreachableError(
            "no cluster is configured: there is no ~/.kube/config, KUBECONFIG is not set and this is no pod; "
            "give --kubeconfig, or run on this machine with --backend local"
        )
    return _from_kubeconfig(place)


def _from_service_account() -> _Found:
    from kubernetes import config  # noqa: PLC0415  # see above
    from kubernetes.client import Configuration  # noqa: PLC0415

    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise UnreachableError(f"this pod's service account: {error}; give --kubeconfig") from error
    return _Found(configuration, namespace, "this pod's service account")


def _from_kubeconfig(place: Place) -> _Found:
    import yaml  # noqa: PLC0415
    from kubernetes import config  # noqa: PLC0415  # see above
    from kubernetes.client import Configuration  # noqa: PLC0415

    files = None if place.kubeconfig is None else str(place.kubeconfig.expanduser())
    where = files or os.environ.get("KUBECONFIG") or str(DEFAULT_KUBECONFIG)
    if not any(Path(name).expanduser().is_file() for name in where.split(os.pathsep) if name):
        raise UnreachableError(f"kubeconfig {where}: no such file; give --kubeconfig or set KUBECONFIG")
    try:
        context = _context(place.context, where) or config.list_kube_config_contexts(config_file=files)[1]
        configuration = Configuration()
        with _complaints() as said:
            config.load_kube_config(config_file=files, context=place.context, client_configuration=configuration)
    except config.ConfigException as error:
        raise UnreachableError(f"kubeconfig {where}: {_one_line(error)}; mend it or give --kubeconfig") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UnreachableError(f"kubeconfig {where}: cannot be read: {_one_line(error)}; mend it") from error
    if said and not (configuration.api_key or configuration.cert_file):
        raise UnreachableError(f"kubeconfig {where}: {' '.join(said[0].split())}; log in again, or mend it")
    namespace = (context.get("context") or {}).get("namespace") or "default"
    return _Found(configuration, namespace, f"context {context['name']} of kubeconfig {where}")


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client says of a login plugin that fails: it logs that, and goes on as somebody whom nobody knows."""
    import logging  # noqa: PLC0415  # only who asks a cluster pays

    said: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listening, root = Listening(logging.ERROR), logging.getLogger()
    root.addHandler(listening)
    try:
        yield said
    finally:
        root.removeHandler(listening)


def _context(name: str | None, where: str) -> Any:
    """The context that is named. The client alone would ask for a current one first, which need not be.

    Raises:
        RequestError: there is none of that name.
    """
    import yaml  # noqa: PLC0415  # only who asks a cluster pays

    if name is None:
        return None
    paths = [Path(part).expanduser() for part in where.split(os.pathsep) if part]
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    contexts = [one for config in read if config for one in config.get("contexts") or ()]
    # Of several files the first one's counts, as it does for the client.
    found = next((one for one in contexts if one["name"] == name), None)
    if found is None:
        known = ", ".join(dict.fromkeys(str(one["name"]) for one in contexts)) or "none"
        raise RequestError(f"--context {name}: not in kubeconfig {where}, which has {known}")
    return found


def _credentials(configuration: Any) -> Credentials:
    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ca_file=configuration.ssl_ca_cert,
        client_cert=configuration.cert_file,
        client_key=configuration.key_file,
        token=_token_of(configuration),
        proxy=_proxy_of(configuration),
        verify=bool(configuration.verify_ssl),
        tls_server_name=configuration.tls_server_name,
    )


def _proxy_of(configuration: Any) -> str | None:
    """The client keeps the environment's proxy, and NO_PROXY apart from it."""
    if not configuration.proxy:
        return None
    from urllib.request import proxy_bypass  # noqa: PLC0415  # only who has a proxy pays

    host = urlsplit(str(configuration.host)).hostname or ""
    return None if proxy_bypass(host) else str(configuration.proxy)


def _token_of(configuration: Any) -> Callable[[], str | None]:
    """Asked before each request: the client renews what is about to expire. The key's name differs by version.

    One at a time: each would start a plugin of its own.
    """
    from kubernetes.config import ConfigException  # noqa: PLC0415  # see above

    lock = threading.Lock()

    def token() -> str | None:
        for name in ("authorization", "BearerToken"):
            try:
                # A plugin that fails leaves the token that it gave last: the server will say whether that is too old.
                with lock, _complaints():
                    header = configuration.get_api_key_with_prefix(name)
            except (ConfigException, OSError, ValueError) as error:
                raise UnreachableError(f"the login cannot be renewed: {_one_line(error)}; log in again") from error
            if header:
                # In a pod the client writes `bearer`, elsewhere `Bearer`; a file's last line has an end.
                return str(header).split(maxsplit=1)[-1].strip()
        return None

    return token


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
