"""Quantities as Kubernetes writes them, like 500m, 64Gi or 1e3 (resource.Quantity in k8s.io/apimachinery). Pure."""

import re
from decimal import Decimal
from functools import lru_cache

PATTERN = r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?"
_QUANTITY = re.compile(PATTERN)
_LEAST_MEMORY = 1 << 20


@lru_cache(maxsize=1024)  # the nodes of a cluster have the same few
def parse_quantity(text: str) -> Decimal:
    """Return the value, which can be 0 in the objects of a cluster.

    Raises:
        ValueError: the text is not a quantity.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("is not a quantity; write it like 16, 500m or 64Gi")
    return Decimal(match[1]) * _scale(match[2] or "")


def quantity(text: str) -> Decimal:
    """Return the value.

    Raises:
        ValueError: the text is not a quantity, or not above 0.
    """
    value = parse_quantity(text)
    if value <= 0:
        raise ValueError("must be more than 0, like 16, 500m or 64Gi")
    return value


def memory(text: str) -> Decimal:
    """Return the value in bytes.

    Raises:
        ValueError: the text is not a quantity, or less than a MiB: `512m` is half a byte.
    """
    value = quantity(text)
    if value < _LEAST_MEMORY:
        raise ValueError("is less than a MiB; write memory like 512Mi or 64Gi")
    return value


def _scale(suffix: str) -> Decimal:
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return Decimal(10) ** int(suffix[1:])
    if suffix.endswith("i"):
        return Decimal(1024) ** (1 + "KMGTPE".index(suffix[0]))
    powers = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    return Decimal(10) ** powers[suffix]
