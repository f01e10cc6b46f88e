"""Kubernetes quantities (`500m`, `1Gi`, `8`), and sums of containers' requests."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

_SUFFIXES = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1)}
_SUFFIXES |= {letter: Fraction(1000 ** (power + 1)) for power, letter in enumerate("kMGTPE")}
_SUFFIXES |= {f"{letter}i": Fraction(1024 ** (power + 1)) for power, letter in enumerate("KMGTPE")}

Amounts = dict[str, Fraction]


def parse(text: str | int) -> Fraction:
    """Return a quantity's number.

    Raises:
        ValueError: the text is not a quantity.
    """
    number = str(text)
    digits = number.rstrip("numkKMGTPEi")
    return Fraction(digits) * _SUFFIXES[number[len(digits) :]]


def to_text(amount: Fraction, *, resource: str) -> str:
    """Return an amount in Kubernetes' form: thousandths only if necessary, memory in powers of two."""
    if amount.denominator != 1:
        return f"{int(amount * 1000)}m"
    if resource.endswith("memory"):
        for suffix in ("Gi", "Mi", "Ki"):
            if amount and amount % _SUFFIXES[suffix] == 0:
                return f"{int(amount / _SUFFIXES[suffix])}{suffix}"
    return str(int(amount))


def parse_all(values: Mapping[str, Any] | None) -> Amounts:
    """Return the amounts of a list of resources."""
    return {name: parse(value) for name, value in (values or {}).items()}


def add(*amounts: Mapping[str, Fraction]) -> Amounts:
    """Return the sum, resource by resource."""
    total: Amounts = {}
    for resources in amounts:
        for name, value in resources.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def requests_of(pod_spec: Mapping[str, Any], kind: str = "requests") -> Amounts:
    """Return the requests of a pod's containers; init containers run earlier, and request no more here."""
    return add(*(parse_all(container.get("resources", {}).get(kind)) for container in pod_spec["containers"]))


def shortages(requested: Mapping[str, Fraction], available: Mapping[str, Fraction]) -> list[str]:
    """Return the resources whose available amount is too small, sorted."""
    return sorted(name for name, value in requested.items() if value > available.get(name, Fraction(0)))


def multiply(amounts: Mapping[str, Fraction], factor: Fraction | int) -> Amounts:
    """Return each amount multiplied by the factor."""
    return {name: value * factor for name, value in amounts.items()}


def subtract(amounts: Mapping[str, Fraction], others: Iterable[Mapping[str, Fraction]]) -> Amounts:
    """Return the remaining amounts, only of the resources in `amounts`."""
    total = add(*others)
    return {name: value - total.get(name, Fraction(0)) for name, value in amounts.items()}
