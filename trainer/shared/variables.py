"""Variables of the environment that begin with PNAS_: a mistyped one is refused, as a mistyped option is.

Commands that only read jobs use it too, so the settings' names come from a generated list, without their models.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from trainer.shared.errors import UsageError

PREFIX = "PNAS_"
SETTING_NAMES = Path(__file__).with_name("setting_names.txt")
"""One setting of the trainer or of the launcher per line; `make generate` writes it."""
PROFILE = "profile"
# The image's entry point and revision, and what the programs tell their own processes. The tests have PNAS_TEST….
_OWN = re.compile(r"PNAS_(ENTERED|REVISION|DEVICE_FILES|WORKER_TASK|TEST.*)")
# Kubernetes gives these to each pod of a namespace that has a Service named pnas or pnas-….
_SERVICE = re.compile(
    r"PNAS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)|PNAS_(\w+_)?(?P<url>PORT)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def name_of(field: str) -> str:
    """Return the variable of a setting: `PNAS_BATCH_SIZE` for `batch_size`."""
    return PREFIX + field.upper()


def read(field: str, environ: Mapping[str, str]) -> str | None:
    """Return the text of a setting's variable; None if it is not set.

    Raises:
        UsageError: The variable is empty.
    """
    name = name_of(field)
    text = environ.get(name)
    if text is None or _is_service(name, text):
        return None
    if not text:
        raise UsageError(f"{name}: is empty; give it a value, or unset it")
    return text


def check(environ: Mapping[str, str]) -> None:
    """Refuse a variable that begins with PNAS_ and has no setting.

    Raises:
        UsageError: No setting has this variable.
    """
    for name, value in environ.items():
        if name.startswith(PREFIX) and not is_variable(name) and not _is_service(name, value):
            # Without the prefix, which would make all names alike.
            fields = sorted(variable.removeprefix(PREFIX) for variable in _variables())
            close = difflib.get_close_matches(name.removeprefix(PREFIX), fields, n=1)
            advice = f"did you mean {PREFIX}{close[0]}?" if close else "unset it, or see docs/options.md for the names"
            raise UsageError(f"{name}: no setting has this variable; {advice}")


def is_variable(name: str) -> bool:
    """Return whether a setting, or a part of this software, has this variable."""
    return name in _variables() or _OWN.fullmatch(name) is not None


@cache
def _variables() -> frozenset[str]:
    names = SETTING_NAMES.read_text(encoding="utf-8").split()
    return frozenset(map(name_of, [*names, PROFILE]))


def _is_service(name: str, value: str) -> bool:
    match = _SERVICE.fullmatch(name)
    return match is not None and (match["url"] is None or _SERVICE_URL.match(value) is not None)
