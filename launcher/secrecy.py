"""Which variables look like secrets, so that none is written into a job for all to read. Pure."""

import re

_WORD = re.compile(
    r"\w*(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?)|(API|ACCESS|PRIVATE|SECRET)?KEYS?|PAT"
)
_HARMLESS = frozenset(("MAX_TOKENS", "MAX_NEW_TOKENS", "SORT_KEY"))
# What is said of a secret is none: where it lies, how long it is valid.
_ABOUT = frozenset(("DIR", "FILE", "PATH", "TTL", "TYPE", "URL"))
_VALUE = re.compile(r"-----BEGIN |(ghp|gho|ghs|github_pat|glpat|hf|xox[abp]|sk)[-_][A-Za-z0-9]{10}|AKIA[A-Z0-9]{12}")


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable's name or its value is a secret's, as people call and services make them."""
    words = re.split(r"[_0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
    named = any(map(_WORD.fullmatch, words)) and words[-1] not in _ABOUT and name not in _HARMLESS
    return bool(value) and (named or _VALUE.match(value) is not None)
