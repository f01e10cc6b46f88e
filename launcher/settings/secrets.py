"""Recognise variables that look like secrets, so that no job shows one to every reader. Pure."""

import re

_WORD = re.compile(
    r"\w*(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?)|(API|ACCESS|PRIVATE|SECRET)?KEYS?|PAT"
)
_HARMLESS = frozenset(("MAX_TOKENS", "MAX_NEW_TOKENS", "SORT_KEY"))
# Names such as TOKEN_PATH or TOKEN_TTL describe a secret and are not one.
_DESCRIPTION = frozenset(("DIR", "FILE", "PATH", "TTL", "TYPE", "URL"))
_VALUE = re.compile(r"-----BEGIN |(ghp|gho|ghs|github_pat|glpat|hf|xox[abp]|sk)[-_][A-Za-z0-9]{10}|AKIA[A-Z0-9]{12}")


def looks_secret(name: str, value: str) -> bool:
    """Return whether users name secrets like this variable, or services issue secrets like its value."""
    words = re.split(r"[_0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
    named_so = any(map(_WORD.fullmatch, words)) and words[-1] not in _DESCRIPTION and name not in _HARMLESS
    return bool(value) and (named_so or _VALUE.match(value) is not None)
