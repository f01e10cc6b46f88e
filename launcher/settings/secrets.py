"""Which variables look like secrets, so that none is written into a job for all to read. Pure."""

import re

WORD = re.compile(
    r"\w*(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?)|(API|ACCESS|PRIVATE|SECRET)?KEYS?|PAT"
)
HARMLESS = frozenset(("MAX_TOKENS", "MAX_NEW_TOKENS", "SORT_KEY"))
# What is said of a secret is none: where it lies, how long it is valid.
ABOUT = frozenset(("DIR", "FILE", "PATH", "TTL", "TYPE", "URL"))
VALUES = re.compile(r"-----BEGIN |(ghp|gho|ghs|github_pat|glpat|hf|xox[abp]|sk)[-_][A-Za-z0-9]{10}|AKIA[A-Z0-9]{12}")


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable's name or its value is a secret's, as people call and services make them."""
    words = re.split(r"[_0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
    named = any(map(WORD.fullmatch, words)) and words[-1] not in ABOUT and name not in HARMLESS
    return bool(value) and (named or VALUES.match(value) is not None)
