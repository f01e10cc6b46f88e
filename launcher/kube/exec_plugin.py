"""Log in by a program that the kubeconfig names (`exec`), and hold its answer until that expires.

The protocol is client.authentication.k8s.io, v1 and v1beta1. A program that is missing, fails, asks without a
terminal, or does not end gives one error: no command hangs on it. Its words on the terminal stay visible,
because they can name the page to open in a browser.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from launcher.errors import UnreachableError

_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# A person who logs in with a browser needs minutes.
_LIMIT_S, _LIMIT_AT_A_TERMINAL_S = 60.0, 300.0
# A login is renewed before it expires. A plugin whose logins are always expired runs at most once in this time.
_EARLY_S = 10.0
_SHOWN = 500


@dataclass(frozen=True)
class Login:
    """A plugin's answer: a token, a client certificate with its key (as PEM), or both."""

    token: str | None
    certificate: str | None
    key: str | None
    expires_at: float | None


class ExecPlugin:
    """A login plugin. Safe to use from several threads: one of them runs it.

    Args:
        settings: `exec` of the kubeconfig's user.
        folder: where a relative command begins.
        cluster: what the plugin may know of the cluster.
        place: names the user in messages.

    Raises:
        UnreachableError: the settings cannot be used.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        cluster: Mapping[str, Any],
        place: str,
        *,
        limit_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        command, self._version = str(settings.get("command") or ""), str(settings.get("apiVersion") or "")
        # A name without a folder is looked up on PATH.
        self._program = str(folder / command) if "/" in command else command
        self._place = f"{place}: login plugin {command}"
        if not command or self._version not in _VERSIONS:
            raise UnreachableError(
                f"{place}: exec needs a command, and an apiVersion of {' or '.join(_VERSIONS)}; fix it"
            )
        arguments, variables = settings.get("args") or [], settings.get("env") or []
        try:
            self._variables = {str(item["name"]): str(item["value"]) for item in variables}
        except (TypeError, KeyError):
            arguments = None
        if not isinstance(arguments, list):  # the letters of a text are no arguments
            raise UnreachableError(f"{self._place}: args must be a list, env one of names and values; fix it")
        self._arguments = [str(word) for word in arguments]
        self._mode = str(settings.get("interactiveMode") or "IfAvailable")
        self._hint = " ".join(str(settings.get("installHint") or "").split())
        self._cluster = cluster if str(settings.get("provideClusterInfo")).lower() == "true" else None
        self._limit_s = limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._renew_at = 0.0

    def login(self) -> Login:
        """Return the current login; run the plugin for a first login, and when one expires.

        A plugin that fails later leaves its last login: the server says whether that is too old.

        Raises:
            UnreachableError: the plugin gives no login.
        """
        with self._lock:
            now = self._clock()
            if self._login is None or now >= self._renew_at:
                try:
                    self._login = self._run()
                except UnreachableError:
                    if self._login is None:
                        raise
                expires_at = self._login.expires_at
                early = float("inf") if expires_at is None else expires_at - _EARLY_S
                self._renew_at = max(early, self._clock() + _EARLY_S)
            return self._login

    def _run(self) -> Login:
        at_terminal = _is_terminal(sys.stderr)
        interactive = self._mode != "Never" and at_terminal and _is_terminal(sys.stdin)
        if self._mode == "Always" and not interactive:
            raise UnreachableError(
                f"{self._place}: asks at a terminal, and there is no terminal here; log in at one first"
            )
        limit_s = self._limit_s or (_LIMIT_AT_A_TERMINAL_S if at_terminal else _LIMIT_S)
        # Files, not pipes: a program that it leaves behind keeps a pipe open, and a reader would wait for that.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as words:
            try:
                code = subprocess.run(
                    [self._program, *self._arguments],
                    stdin=None if interactive else subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if at_terminal else words,
                    env={**os.environ, **self._variables, "KUBERNETES_EXEC_INFO": self._info(interactive)},
                    timeout=limit_s,
                    check=False,
                ).returncode
            except FileNotFoundError as error:
                hint = self._hint or "install it"
                raise UnreachableError(f"{self._place}: is not there; {hint}") from error
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise UnreachableError(f"{self._place}: cannot be run: {reason}; fix it") from error
            except subprocess.TimeoutExpired as error:
                said = _text(words)
                raise UnreachableError(
                    f"{self._place}: did not end within {limit_s:g} s{f', and said: {said}' if said else ''}; "
                    "run it by hand to see what it waits for, or log in again"
                ) from error
            if code != 0:
                said = _text(words) or "nothing"
                raise UnreachableError(f"{self._place}: ended with {code}, and said: {said}; log in again, or fix it")
            output.seek(0)
            return self._parsed(output.read())

    def _info(self, interactive: bool) -> str:
        spec: dict[str, Any] = {"interactive": interactive}
        if self._cluster is not None:
            spec["cluster"] = self._cluster
        return json.dumps({"apiVersion": self._version, "kind": "ExecCredential", "spec": spec})

    def _parsed(self, answer: bytes) -> Login:
        """Return the login in an answer. Messages show no part of it: it can be a token."""
        try:
            credential = json.loads(answer)
            version, status = credential["apiVersion"], credential["status"]
            texts = [status.get(name) for name in ("token", "clientCertificateData", "clientKeyData")]
            stamp = status.get("expirationTimestamp")
            expires_at = None if stamp is None else _seconds(stamp)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnreachableError(
                f"{self._place}: its answer is not an ExecCredential; log in again, or fix it"
            ) from error
        if version != self._version:
            raise UnreachableError(
                f"{self._place}: answers in {version}, and the kubeconfig says {self._version}; fix it"
            )
        token, certificate, key = (str(text) if text else None for text in texts)
        if (token is None and certificate is None) or (certificate is None) is not (key is None):
            raise UnreachableError(
                f"{self._place}: its answer has no token and no certificate with a key; log in again, or fix it"
            )
        return Login(token, certificate, key, expires_at)


def cluster_info(server: str, values: Mapping[str, Any], ca_file: Path | None) -> dict[str, Any]:
    """Return what a plugin may know of a cluster (`provideClusterInfo`).

    Raises:
        OSError: the file of the CA cannot be read.
    """
    info: dict[str, Any] = {"server": server}
    info |= {key: values[key] for key in ("tls-server-name", "proxy-url") if key in values}
    if str(values.get("insecure-skip-tls-verify")).lower() == "true":
        info["insecure-skip-tls-verify"] = True
    if ca_file is not None:
        info["certificate-authority-data"] = base64.b64encode(ca_file.read_bytes()).decode()
    extensions = values.get("extensions")
    for extension in extensions if isinstance(extensions, list) else ():
        if isinstance(extension, dict) and extension.get("name") == "client.authentication.k8s.io/exec":
            info["config"] = extension.get("extension")
    return info


def _seconds(stamp: str) -> float:
    """Return the moment of an RFC 3339 stamp, in seconds since the epoch.

    Raises:
        ValueError: the text is no such stamp.
    """
    # Python 3.10 reads neither `Z` nor more or fewer than three or six digits of a second.
    whole, _, rest = stamp.replace("Z", "+00:00").partition(".")
    moment = datetime.fromisoformat(whole + rest.lstrip("0123456789"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a person is there. A closed stream is None."""
    return stream is not None and not stream.closed and stream.isatty()


def _text(file: IO[bytes]) -> str:
    """Return the end of a file in one line."""
    file.seek(0)
    return " ".join(file.read().decode("utf-8", "replace").split())[-_SHOWN:]
