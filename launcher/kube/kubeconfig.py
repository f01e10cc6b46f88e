"""Which cluster, and as which user: from a kubeconfig or from the pod's own service account.

The files mean what kubectl takes them to mean. No login leaves this machine without TLS. The official client is used
for one thing only, the old `auth-provider` logins, which it renews; this is the only module that imports it.
"""

import base64
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.errors import UnreachableError
from launcher.kube.access import DEFAULT_KUBECONFIG, SERVICE_ACCOUNT, ClusterAccess, Credentials, Headers, is_in_cluster
from launcher.kube.exec_plugin import ExecPlugin, cluster_info
from launcher.kube.kubeconfig_files import ClusterContext, ConfigEntry, read_context
from launcher.kube.proxy import is_host, proxy_of
from launcher.kube.tls_files import check_tls, data_file
from trainer.shared.files import read_file, why_no_file, with_home

_FIX = "fix it or give --kubeconfig"


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
    place = "this pod's service account"
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    server = _server(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", place)
    account = ConfigEntry({"certificate-authority": "ca.crt", "tokenFile": "token"}, SERVICE_ACCOUNT)
    try:
        namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        credentials = Credentials(
            server=server,
            ca_file=_file(account, "certificate-authority", place),
            client_cert=None,
            client_key=None,
            login=lambda: [_authorization("Bearer", _token(account, place), place)],
            proxy=proxy_of(server, "", os.environ),
            verify=True,
            tls_server_name=None,
        )
        check_tls(credentials, place, _FIX)
    except OSError as error:
        raise UnreachableError(f"{place}: {error}; give --kubeconfig") from error
    return ConfiguredCluster(credentials, namespace, place)


def _from_kubeconfig(access: ClusterAccess) -> ConfiguredCluster:
    files = None if access.kubeconfig is None else str(with_home(access.kubeconfig))
    paths = files or os.environ.get("KUBECONFIG") or str(DEFAULT_KUBECONFIG)
    context = read_context(paths, access.context)
    try:
        credentials = _credentials(context, paths, f"kubeconfig {paths}: context {context.name}")
    except OSError as error:
        raise UnreachableError(f"kubeconfig {paths}: {error}; {_FIX}") from error
    return ConfiguredCluster(credentials, context.namespace, f"context {context.name} of kubeconfig {paths}")


def _credentials(context: ClusterContext, paths: str, place: str) -> Credentials:
    cluster = context.cluster
    server = _server(cluster.text("server"), place)
    if not server.startswith("https:"):
        # Like kubectl, do not send a login without TLS.
        context = replace(context, user=ConfigEntry({}, context.user.folder))
    ca_file = _file(cluster, "certificate-authority", place)
    server_name = cluster.text("tls-server-name") or None
    if server_name is not None and not is_host(server_name):
        raise UnreachableError(f"{place}: tls-server-name is not the name of a host; {_FIX}")
    certificate, key = (_file(context.user, name, place) for name in ("client-certificate", "client-key"))
    plugin = _plugin(context, server, ca_file, place)
    if plugin is not None and (first := plugin.login()).certificate is not None and first.key is not None:
        certificate, key = data_file(first.certificate.encode()), data_file(first.key.encode())
    login = _user_login(context, plugin, paths, place)
    acting_as = _impersonation(context.user, place)
    credentials = Credentials(
        server=server,
        ca_file=ca_file,
        client_cert=certificate,
        client_key=key,
        login=lambda: [*login(), *acting_as],
        proxy=proxy_of(server, cluster.text("proxy-url"), os.environ),
        verify=not cluster.switch("insecure-skip-tls-verify"),
        tls_server_name=server_name,
    )
    check_tls(credentials, place, _FIX)
    return credentials


def _plugin(context: ClusterContext, server: str, ca_file: str | None, place: str) -> ExecPlugin | None:
    """Return the user's login plugin; None for a user with a token or without a plugin."""
    user = context.user
    settings = user.part("exec")
    if settings is None or user.text("tokenFile") or user.text("token") or user.part("auth-provider") is not None:
        return None
    info = cluster_info(server, context.cluster.values, None if ca_file is None else Path(ca_file))
    return ExecPlugin(settings, user.folder, info, place)


def _user_login(context: ClusterContext, plugin: ExecPlugin | None, paths: str, place: str) -> Callable[[], Headers]:
    """Return the function that gives the headers of the user's login."""
    user = context.user
    if plugin is not None:
        return lambda: [_authorization("Bearer", token, place) for token in [plugin.login().token] if token]
    if user.text("tokenFile") or user.text("token"):
        return lambda: [_authorization("Bearer", _token(user, place), place)]
    if user.part("auth-provider") is not None:
        return _provider_login(paths, context.name, place)
    if name := user.text("username"):
        basic = base64.b64encode(f"{name}:{user.text('password')}".encode()).decode()
        return lambda: [_authorization("Basic", basic, place)]
    return list


def _server(text: str, place: str) -> str:
    """Return the server's address."""
    url = text.strip()
    if not url:
        raise UnreachableError(f"{place}: its cluster has no server; {_FIX}")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        usable = False
    if "://" not in url:
        raise UnreachableError(f"{place}: server {url} does not say how to speak; write it like https://{url}")
    if not usable or "@" in url or "?" in url or not url.isprintable() or " " in url:
        raise UnreachableError(f"{place}: server is no address like https://10.0.0.5:6443; {_FIX}")
    return url.rstrip("/")


def _file(entry: ConfigEntry, key: str, place: str) -> str | None:
    """Return the path of a file that an entry names, or whose content it holds (`KEY-data`)."""
    if data := entry.text(f"{key}-data"):
        try:
            return data_file(base64.b64decode("".join(data.split()), validate=True))
        except ValueError as error:
            raise UnreachableError(f"{place}: {key}-data is not base64; {_FIX}") from error
    path = entry.path(key)
    if path is not None and not path.is_file():
        raise UnreachableError(f"{place}: {key} {path}: {why_no_file(path)}; {_FIX}")
    return None if path is None else str(path)


def _token(user: ConfigEntry, place: str) -> str:
    """Return the current token; a file can get a new one at any time."""
    path = user.path("tokenFile")
    if path is None:
        return user.text("token")
    try:
        return read_file(path).decode()
    except (OSError, ValueError) as error:  # no UTF-8 text, or a path with a NUL
        if token := user.text("token"):
            return token
        raise UnreachableError(f"{place}: tokenFile {path}: cannot be read ({error}); log in again") from error


def _authorization(scheme: str, text: str, place: str) -> tuple[str, str]:
    """Return the header of a login. The last line of a token's file has a line end."""
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise UnreachableError(f"{place}: its token is empty, or is no token; log in again")
    return "Authorization", f"{scheme} {text}"


def _impersonation(user: ConfigEntry, place: str) -> Headers:
    """Return the headers of a user who acts as another one (`as`, `as-uid`, `as-groups`)."""
    groups = user.values.get("as-groups") or []
    if user.values.get("as-user-extra") or not isinstance(groups, list) or (groups and not user.text("as")):
        raise UnreachableError(f"{place}: only as, as-uid and as-groups of a user are supported, with `as`; {_FIX}")
    texts = [user.text("as"), user.text("as-uid"), *map(str, groups)]
    if not all(text.isascii() and text.isprintable() for text in texts):
        raise UnreachableError(f"{place}: as, as-uid and as-groups can hold only printable ASCII; {_FIX}")
    named = [("Impersonate-User", user.text("as")), ("Impersonate-Uid", user.text("as-uid"))]
    headers = [*named, *(("Impersonate-Group", str(group)) for group in groups)]
    return [(name, value) for name, value in headers if value]


def _provider_login(paths: str, context: str, place: str) -> Callable[[], Headers]:
    """Return the login of an old `auth-provider` entry, which the official client reads and renews.

    Raises:
        UnreachableError: the client finds no login in it.
    """
    from kubernetes import client, config  # noqa: PLC0415  # a quarter of a second, for few users

    configuration: Any = client.Configuration()
    lock = threading.Lock()

    def ask(question: Callable[[], Any]) -> Any:
        try:
            with lock, _logged_errors():
                return question()
        except (config.ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UnreachableError(f"{place}: the login cannot be renewed: {reason}; log in again") from error

    def login() -> Headers:
        # The name of the key differs by version.
        names = ("authorization", "BearerToken")
        header = ask(lambda: next(filter(None, map(configuration.get_api_key_with_prefix, names)), None))
        if not header:
            raise UnreachableError(f"{place}: its auth-provider gives no token; use a login plugin (exec)")
        return [_authorization("Bearer", str(header).split(maxsplit=1)[-1], place)]

    ask(lambda: config.load_kube_config(config_file=paths, context=context, client_configuration=configuration))
    login()
    return login


@contextmanager
def _logged_errors() -> Iterator[None]:
    """Leave out what the client logs: the error that follows says it."""
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
