"""Take one value out of a table's JSON, or refuse it with its path, its value and the rule it breaks.

Kept apart from the formats so that each of those reads like its documentation.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from trainer.shared.errors import UsageError

Json: TypeAlias = Any  # what json.loads returns: checked value by value, here
SHOWN = 80  # characters of a value in a message


def optional_ip(entry: Mapping[str, Json], key: str, where: str) -> str | None:
    """An address, or None where the key is missing or empty (old device plugins leave host_ip empty)."""
    if entry.get(key, "") == "":
        return None
    address = text_of(entry, key, where)
    if not is_ip(address):
        refuse(path_of(where, key), address, "is not an IP address")
    return address


def is_ip(address: str) -> bool:
    """Whether `address` is an IPv4 or IPv6 address; one with a scope (fe80::1%eth0) means nothing to another host."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return "%" not in address


def check_count(entry: Mapping[str, Json], key: str, where: str, found: int, of: str) -> None:
    """Refuse a count, written as a string, that differs from the entries it counts."""
    if number_of(entry, key, where) != found:
        refuse(path_of(where, key), entry[key], f"is not the number of {of} entries, {found}")


def number_of(entry: Mapping[str, Json], key: str, where: str) -> int:
    """A count or id of the versions that write every number as a string; HCCL refuses a plain number there."""
    value = text_of(entry, key, where)
    if not re.fullmatch(r"[0-9]{1,18}", value):
        refuse(path_of(where, key), value, 'must be a number in quotes, like "0"')
    return int(value)


def whole_of(entry: Mapping[str, Json], key: str, where: str) -> int:
    """A count or id of version 2.0, which writes numbers as numbers."""
    value = _there(entry, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(path_of(where, key), value, "must be a number of at least 0, without quotes")
    return value


def text_of(entry: Mapping[str, Json], key: str, where: str) -> str:
    """A string that has to be there; it may be empty."""
    value = _there(entry, key, where)
    if not isinstance(value, str):
        refuse(path_of(where, key), value, "must be a string")
    return value


def list_of(entry: Mapping[str, Json], key: str, where: str) -> list[Json]:
    """A list that has to be there, with at least one entry."""
    value = _there(entry, key, where)
    if not isinstance(value, list) or not value:
        refuse(path_of(where, key), value, "must be a list with at least one entry")
    return value


def object_of(value: Json, where: str) -> Mapping[str, Json]:
    """`value` itself, if it is a JSON object."""
    if not isinstance(value, dict):
        refuse(where, value, "must be a JSON object")
    return value


def path_of(where: str, key: str) -> str:
    """The name of a field for a message: `server_list[0].device[1].rank_id`."""
    return f"{where}.{key}" if where else key


def refuse(field: str, value: object, rule: str) -> NoReturn:
    """Raise a UsageError: `field` holds `value`, and `rule` says what is wrong with that."""
    raise UsageError(
        f"{field} is {show(value)}: {rule}" if rule.startswith("must") else f"{field} {show(value)} {rule}"
    )


def plain(name: str) -> str:
    """A name as it is, where that is short and nothing but a part of a line; else as `show` has it."""
    return name if name.isprintable() and len(name) <= SHOWN else show(name)


def show(value: object) -> str:
    """A value as JSON on one line, cut where it is long."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:  # what json.loads could just read
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _there(entry: Mapping[str, Json], key: str, where: str) -> Json:
    if key not in entry:
        raise UsageError(f"{path_of(where, key)} is missing")
    return entry[key]
