"""Certificates and keys as files: TLS libraries take them from there, and a kubeconfig can hold their content."""

import atexit
import os
import shutil
import ssl
import tempfile
from functools import cache
from pathlib import Path

from launcher.errors import UnreachableError
from launcher.kube.access import Credentials


@cache
def _private_folder() -> Path:
    """Return a folder of this process, which only this user can read."""
    folder = Path(tempfile.mkdtemp(prefix="pnas-login-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def data_file(content: bytes) -> str:
    """Return the path of a file with this content: TLS libraries take certificates and keys from files."""
    descriptor, name = tempfile.mkstemp(dir=_private_folder())
    os.close(descriptor)
    Path(name).write_bytes(content)
    return name


def check_tls(credentials: Credentials, place: str, remedy: str) -> None:
    """Refuse certificates and keys that no connection could use.

    Raises:
        UnreachableError: one of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if credentials.ca_file is not None:
            context.load_verify_locations(credentials.ca_file)
    except ssl.SSLError as error:
        raise UnreachableError(f"{place}: certificate-authority holds no certificate; {remedy}") from error
    if credentials.client_key is not None and credentials.client_cert is None:
        raise UnreachableError(f"{place}: client-key has no client-certificate; {remedy}")
    try:
        if credentials.client_cert is not None:
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(credentials.client_cert, credentials.client_key, password="")
    except ssl.SSLError as error:
        reason = "cannot be used, or do not belong together; a key must have no password"
        raise UnreachableError(
            f"{place}: client-certificate and client-key {reason}; log in again, or fix them"
        ) from error
