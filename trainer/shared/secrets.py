"""Recognise texts that look like secrets, so that no job shows one to every user who can read it. Pure.

A job's objects hold its settings and its overlay in clear. A Secret is the place for a password; pods take it from
there with --env-from-secret, or with `valueFrom` in an overlay.
"""

import re
from collections.abc import Iterator
from typing import Any

# Patterns of names in upper case, with `_` between words. The chart uses all patterns in capitals too, by Go's regular
# expressions: they must not look ahead or behind.
SECRET_NAME = (
    r"(^|_)([A-Z]*(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|PWD|AUTHORIZATION)|BEARER|JWT|PAT"
    r"|(API|ACCESS|ACCOUNT|DEPLOY|ENCRYPTION|LICENSE|MASTER|PRIVATE|SECRET|SIGNING|SSH)?KEYS?)(_|$)"
)
# Words that name other things too, with a number or a switch as their value.
AMBIGUOUS_NAME = r"(^|_)([A-Z]*(AUTH|PASS)|COOKIES?|DSN|SIG)(_|$)"
# Names such as TOKEN_PATH or TOKEN_TTL describe a secret and are not one.
HARMLESS_NAME = (
    r"_(ALGORITHM|CLASS|COUNT|DIR|DISABLED|ENABLED|ENDPOINT|EXPIRY|FILE|FORMAT|HEADER|HOST|ISSUER|LENGTH|LIMIT|METHOD|MODE)$"
    r"|_(NAME|NAMESPACE|PATH|PORT|PREFIX|PROVIDER|REQUIRED|SIZE|TTL|TYPE|URL|VERSION)$"
    r"|^(MAX_TOKENS|MAX_NEW_TOKENS|SORT_KEY|PWD|OLDPWD)$|(^|_)PUBLIC_"
)
SWITCH = r"^(?i:[0-9.]*|true|false|yes|no|on|off|none|auto)$"
# A password in a URL, known keys, and a token of at least seven characters with a digit after `Bearer`.
SECRET_VALUE = (
    r"://[^\s/?#@:]*:[^\s/?#@$][^\s/?#@]*@|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b((ghp|gho|ghs|ghu|github_pat|glpat|hf|npm|pypi|dckr_pat|xox[abp]|sk)[-_][A-Za-z0-9]{10}|A[KS]IA[A-Z0-9]{12})"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}|\bAIza[\w-]{30}|\bbearer\s+[\w.~+/-]*([\w.~+/-]{6}\d|\d[\w.~+/-]{6})"
)
# The password of a proxy without `http://`; `$(NAME)` takes it from a variable.
PROXY_LOGIN = r"^[^\s/@:]+:[^\s/@$][^\s/@]*@[\w.-]+(:\d{1,5})?/?$"
NO_LOGIN = "^mailto:"
# In a command, a URL's query or a connection string: --token=x, ?sig=x, HF_TOKEN=x, Password=x;
_ASSIGNMENT = re.compile(r"(?<![\w-])(?=-{0,2}([A-Za-z][\w.-]*)\s?=\s?[\"']?([^\s\"';&,]*))")
_OPTION = re.compile(r"--?([A-Za-z][\w-]*)")
HEADER = r"\b([A-Za-z][A-Za-z-]*):\s+(\S+)"
# A value that is taken from elsewhere: by the kubelet, and in commands and templates by other programs.
REFERENCE = r"^\$\(\w+\)$"
FOREIGN_REFERENCE = r"^[\"']?(\$[({\w]|`|%%|\{\{|<)"
# The place of a secret in a store, such as `database/creds/app`.
_STORE_PATH = re.compile(r"[a-z0-9_-]+(/[a-z0-9_.-]+)+")
# Fields of an overlay whose keys are the user's own words; all other keys are Kubernetes'.
_OWN_KEYS = frozenset(("annotations", "labels", "options", "volumeAttributes"))


def looks_secret(name: str, value: str) -> bool:
    """Return whether users name secrets like this variable, or services issue secrets like its value."""
    return bool(value) and (_is_secret_name(name, value) or holds_secret(value))


def holds_secret(text: str) -> bool:
    """Return whether a text has a part that looks like a secret: a password in a URL, `--token=…`, a known key."""
    if re.search(SECRET_VALUE, text, re.IGNORECASE):
        return True
    if re.search(PROXY_LOGIN, text, re.IGNORECASE) and not re.search(NO_LOGIN, text, re.IGNORECASE):
        return True
    pairs = (*_ASSIGNMENT.findall(text), *re.findall(HEADER, text))
    return any(is_secret_option(name, value) for name, value in pairs)


def secrets_in(value: Any, place: str = "") -> Iterator[str]:
    """Yield the place of each part of a pod template that looks like a secret, such as `spec.containers[0].env[2]`."""
    if isinstance(value, str):
        if holds_secret(value):
            yield place
    elif isinstance(value, list):
        for number, item in enumerate(value):
            option = _OPTION.fullmatch(str(value[number - 1])) if number else None
            if option and isinstance(item, str) and item[:1] != "-" and is_secret_option(option[1], item):
                yield f"{place}[{number}] (after {option[0]})"
            else:
                yield from secrets_in(item, f"{place}[{number}]")
    elif isinstance(value, dict):
        name, text = value.get("name"), value.get("value")
        if isinstance(name, str) and isinstance(text, str) and looks_secret(name, text):
            # A variable, or a header of a probe.
            yield f"{place} ({name})"
            return
        own = place.rpartition(".")[2] in _OWN_KEYS
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            if own and isinstance(item, str) and _is_secret_entry(str(key), item):
                yield below
            else:
                yield from secrets_in(item, below)


def is_secret_option(name: str, value: str) -> bool:
    """Return whether an option of a command has a secret. A plain `--key` can be a column of `sort`, for example."""
    if name.lower() in ("key", "keys") or re.search(FOREIGN_REFERENCE, value):
        return False
    return _is_secret_name(name, value)


def _is_secret_entry(key: str, value: str) -> bool:
    """Return whether an annotation, or an attribute of a volume, is a secret. Its key often tells where a secret is."""
    last = _words(key.rpartition("/")[2]).rstrip("_").rpartition("_")[2]
    return not re.search(SWITCH, value) and not _STORE_PATH.fullmatch(value) and looks_secret(last, value)


def _words(name: str) -> str:
    return re.sub(r"[^A-Z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())


def _is_secret_name(name: str, value: str) -> bool:
    """Return whether a name says that its value is a secret."""
    words = _words(name)
    if not value or re.search(REFERENCE, value) or re.search(HARMLESS_NAME, words):
        return False
    if re.search(SECRET_NAME, words):
        return True
    return re.search(AMBIGUOUS_NAME, words) is not None and not re.search(SWITCH, value)
