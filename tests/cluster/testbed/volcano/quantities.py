"""Kubernetes quantities (`500m`, `1Gi`, `8`), and sums of what containers ask for."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

_SUFFIXES = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1)}
_SUFFIXES |= {letter: Fraction(1000 ** (power + 1)) for power, letter in enumerate("kMGTPE")}
_SUFFIXES |= {f"{letter}i": Fraction(1024 ** (power + 1)) for power, letter in enumerate("KMGTPE")}

Amounts = dict[str, Fraction]


def parse(text: str | int) -> Fraction:
    """The number.

    Raises:
        ValueError: it is none.
    """
    number = str(text)
    digits = number.rstrip("numkKMGTPEi")
    return Fraction(digits) * _SUFFIXES[number[len(digits) :]]


def written(amount: Fraction, *, resource: str) -> str:
    """In the form that Kubernetes gives it: thousandths only where they are needed, memory in powers of two."""
    if amount.denominator != 1:
        return f"{int(amount * 1000)}m"
    if resource.endswith("memory"):
        for suffix in ("Gi", "Mi", "Ki"):
            if amount and amount % _SUFFIXES[suffix] == 0:
                return f"{int(amount / _SUFFIXES[suffix])}{suffix}"
    return str(int(amount))


def parsed(values: Mapping[str, Any] | None) -> Amounts:
    """A list of resources."""
    return {name: parse(value) for name, value in (values or {}).items()}


def added(*amounts: Mapping[str, Fraction]) -> Amounts:
    """The sum, resource by resource."""
    total: Amounts = {}
    for one in amounts:
        for name, value in one.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def asked(pod_spec: Mapping[str, Any], kind: str = "requests") -> Amounts:
    """What a pod's containers ask for together; init containers run before them, and ask for no more here."""
    return added(*(parsed(container.get("resources", {}).get(kind)) for container in pod_spec["containers"]))


def exceeding(wanted: Mapping[str, Fraction], available: Mapping[str, Fraction]) -> list[str]:
    """The resources of which there is not enough, sorted."""
    return sorted(name for name, value in wanted.items() if value > available.get(name, Fraction(0)))


def times(amounts: Mapping[str, Fraction], factor: Fraction | int) -> Amounts:
    """Each of them."""
    return {name: value * factor for name, value in amounts.items()}


def without(amounts: Mapping[str, Fraction], others: Iterable[Mapping[str, Fraction]]) -> Amounts:
    """What is left, and no resource that was not there."""
    taken = added(*others)
    return {name: value - taken.get(name, Fraction(0)) for name, value in amounts.items()}
